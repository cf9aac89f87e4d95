"""The findings that checks of every run share: each yields the sentences of what is wrong, most often none."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence

from ofa_jax.config.errors import nearest
from ofa_jax.config.schema import AnyRun, DataConfig, MeshConfig, OptimizerConfig


def at_least(path: str, value: float, low: float) -> Iterator[str]:
    """`value` must not be below `low`."""
    if value < low:
        yield f"{path}: found {value}, expected at least {low}"


def positive(path: str, value: float) -> Iterator[str]:
    """`value` must be above 0."""
    if value <= 0:
        yield f"{path}: found {value}, expected more than 0"


def fraction(path: str, value: float, *, open_end: bool) -> Iterator[str]:
    """A number from 0 to 1; `open_end` leaves out 1 itself."""
    if value < 0 or value > 1 or (open_end and value == 1):
        yield f"{path}: found {value}, expected a number from 0 to 1{', 1 not included' if open_end else ''}"


def multiple(path: str, value: int, of: int, why: str) -> Iterator[str]:
    """`value` must be a positive multiple of `of`; the sentence names the nearest ones."""
    if value <= 0 or value % of:
        low = value // of * of
        legal = f"{low} or {low + of}" if low > 0 else f"{of}"
        yield f"{path}: found {value}, expected a multiple of {of} ({why}): nearest {legal}"


def run_findings(config: AnyRun) -> Iterator[str]:
    """Name, folder, steps, checkpoints and optimizer: what every run has."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", config.name):
        yield f"name: found {config.name!r}, expected letters, digits, '_', '-' and '.', because it names the run's folder"
    if re.search(r"[{}]", config.workdir.replace("{name}", "")) or not config.workdir:
        yield f"workdir: found {config.workdir!r}, expected a path in which only {{name}} stands in braces"
    yield from positive("steps", config.steps)
    yield from positive("log_every", config.log_every)
    yield from at_least("hang_s", config.hang_s, 0)
    yield from at_least("seed", config.seed, 0)
    yield from positive("checkpoint.every_steps", config.checkpoint.every_steps)
    yield from at_least("checkpoint.every_s", config.checkpoint.every_s, 0)
    yield from _kept_findings(config)
    optimizer = config.optimizer
    yield from positive("optimizer.learning_rate", optimizer.learning_rate)
    yield from at_least("optimizer.end_learning_rate", optimizer.end_learning_rate, 0)
    yield from fraction("optimizer.warmup_fraction", optimizer.warmup_fraction, open_end=False)
    yield from fraction("optimizer.beta1", optimizer.beta1, open_end=True)
    yield from fraction("optimizer.beta2", optimizer.beta2, open_end=True)
    yield from positive("optimizer.eps", optimizer.eps)
    yield from at_least("optimizer.weight_decay", optimizer.weight_decay, 0)
    yield from at_least("optimizer.clip_norm", optimizer.clip_norm, 0)
    yield from positive("optimizer.accumulate", optimizer.accumulate)
    yield from fraction("optimizer.ema_decay", optimizer.ema_decay, open_end=True)
    guard = config.guard
    for name in ("loss_factor", "norm_factor"):
        factor = getattr(guard, name)
        if factor != 0 and factor <= 1:
            yield f"guard.{name}: found {factor}, expected more than 1, or 0 for no limit"
    yield from at_least("guard.deviations", guard.deviations, 0)
    yield from positive("guard.window", guard.window)
    yield from positive("guard.max_in_a_row", guard.max_in_a_row)
    yield from at_least("guard.rewinds", guard.rewinds, 0)
    yield from at_least("monitor.trace_step", config.monitor.trace_step, 0)


def named_findings(config: OptimizerConfig, parts: Sequence[str]) -> Iterator[str]:
    """Entries of `optimizer.frozen` and `optimizer.trained` begin with a part of the model or a pattern; what lies below is known to the
    model alone."""
    for field in ("frozen", "trained"):
        for entry in getattr(config, field):
            first = entry.split("/")[0]
            if first not in parts and not re.search(r"[*?\[]", first):
                yield f"optimizer.{field}: found {entry}, expected parts of the model; {nearest(first, parts)}"


def _kept_findings(config: AnyRun) -> Iterator[str]:
    """What stays of the checkpoints, and how long one may take."""
    plan = config.checkpoint
    field = "loss_every_steps" if plan.best_metric.startswith("held_out/") else "every_steps"
    every = getattr(config.eval, field, 0)  # a VQGAN's run has no loss_every_steps
    yield from positive("checkpoint.keep", plan.keep)
    yield from positive("checkpoint.deadline_s", plan.deadline_s)
    yield from at_least("checkpoint.keep_every", plan.keep_every, 0)
    yield from at_least("checkpoint.keep_best", plan.keep_best, 0)
    if plan.keep_every > 0 and plan.every_steps > 0:
        why = "checkpoint.every_steps, where checkpoints are surely written"
        yield from multiple("checkpoint.keep_every", plan.keep_every, plan.every_steps, why)
    if bool(plan.keep_best) != bool(plan.best_metric):
        yield (
            f"checkpoint.best_metric: found {plan.best_metric!r} with checkpoint.keep_best={plan.keep_best}, expected both or neither: "
            "a number of the evaluation, as eval/<metric>/<set>, and how many of the best stay"
        )
    elif plan.keep_best > 0 and not every:
        yield f"checkpoint.keep_best: found {plan.keep_best} with eval.{field}=0, expected an evaluation during training to judge by"
    elif plan.keep_best > 0 and plan.every_steps > 0:
        why = "checkpoint.every_steps, so that what is evaluated is saved"
        yield from multiple(f"eval.{field}", every, plan.every_steps, why)
    if plan.lowest_is_best and not plan.keep_best:
        yield "checkpoint.lowest_is_best: found true with checkpoint.keep_best=0, expected false where none is kept by its score"


def data_findings(data: DataConfig) -> Iterator[str]:
    """Folder, readers, the rule for bad records, and the names of blocks."""
    if not data.dir:
        yield "data.dir: found nothing, expected the folder that holds the prepared datasets"
    yield from at_least("data.num_workers", data.num_workers, 0)
    yield from positive("data.prefetch", data.prefetch)
    yield from fraction("data.max_reject_fraction", data.max_reject_fraction, open_end=False)
    yield from at_least("data.reject_grace", data.reject_grace, 0)
    if list(data.stage_steps) != sorted(set(data.stage_steps)) or any(step < 1 for step in data.stage_steps):
        yield f"data.stage_steps: found {data.stage_steps}, expected ascending steps of 1 or more"
    yield from at_least("data.max_epochs", data.max_epochs, 0)
    yield from at_least("data.question_objects", data.question_objects, 0)
    if data.question_objects > 0 and not any(source.row == "answer" for block in data.blocks for source in block.sources):
        yield f"data.question_objects: found {data.question_objects} without rows answer, whose questions alone have objects, expected 0"
    if not data.blocks:
        yield "data.blocks: found none, expected at least one row block"
    names = [block.name for block in data.blocks]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"data.blocks: found the name {name} twice, expected names that differ"
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            yield f"data.blocks: found the name {name!r}, expected lower-case letters, digits and '_'"


def mesh_findings(mesh: MeshConfig, num_devices: int | None) -> Generator[str, None, dict[str, int] | None]:
    """Yields what is wrong with the axes; returns their sizes (`resolve_mesh`), or None where something is."""
    sizes = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    for name, size in sizes.items():
        if size < 1 and size != -1:
            yield f"mesh.{name}: found {size}, expected a positive number of devices, or -1 for what the others leave"
            return None
    if list(sizes.values()).count(-1) > 1:
        yield f"mesh: found -1 more than once ({sizes}), expected it on one axis at most"
        return None
    known = 1
    for size in sizes.values():
        known *= size if size > 0 else 1
    if num_devices is not None:
        if -1 in sizes.values():
            if num_devices % known:
                yield f"mesh: found {sizes}, whose fixed axes take {known} devices, expected a divisor of the {num_devices} there are"
                return None
        elif known != num_devices:
            yield f"mesh: found {sizes}, which takes {known} devices, expected the {num_devices} devices there are"
            return None
    return resolve_mesh(mesh, num_devices)


def resolve_mesh(mesh: MeshConfig, num_devices: int | None) -> dict[str, int]:
    """Returns the axis sizes of the mesh; an axis of -1 takes what is left of `num_devices`, or 1 where that is not known."""
    sizes = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    fixed = 1
    for size in sizes.values():
        fixed *= size if size > 0 else 1
    return {name: size if size > 0 else max(1, (num_devices or fixed) // fixed) for name, size in sizes.items()}
