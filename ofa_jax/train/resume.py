"""Whether a stored run may go on under the config at hand. The same command resumes; a config that means another run is refused."""

from __future__ import annotations

from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.render import leaves
from ofa_jax.config.schema import AnyRun

# What changes where or how fast a run goes, or what is reported, but not what is learned. A name ending in a dot covers all below it.
# The guard is free because a run that it ended goes on under another one; accumulation changes which units are dropped, as a seed does.
FREE_FIELDS = (
    "name", "workdir", "log_every", "hang_s", "checkpoint.", "eval.", "mesh.", "guard",
    "data.dir", "data.num_workers", "data.prefetch", "data.max_reject_fraction", "data.reject_grace", "data.max_epochs",
    "data.write_digests",
    "vocab.path", "loss.logit_chunk", "optimizer.accumulate", "model.layers", "model.remat", "model.attention", "model.convolution",
)  # fmt: skip


def check_resume(
    stored: AnyRun, config: AnyRun, *, step: int, where: str, stored_identity: dict[str, str], identity: dict[str, str]
) -> None:
    """Raises `CheckpointError` naming the first field that makes `config` another run than the `stored` one, saved at `step`.

    `steps` may change as long as it is not below `step`; the schedule follows the new value. identity: facts outside the config, as
    the tokeniser's digest, by name. where: the checkpoint, for the sentence.
    """
    if config.steps < step:
        raise CheckpointError(f"steps: found {config.steps}, expected at least {step}, the step that {where} has reached")
    old, new = leaves(stored), leaves(config)
    for field in [*old, *(name for name in new if name not in old)]:
        if field == "steps" or any(field == free or (free.endswith(".") and field.startswith(free)) for free in FREE_FIELDS):
            continue
        if old.get(field) != new.get(field):
            raise CheckpointError(
                f"{field}: found {new.get(field, 'nothing')}, expected {old.get(field, 'nothing')} as in {where}; "
                "give the old value to go on, or another --config.name to start a new run"
            )
    for fact in sorted({*stored_identity, *identity}):
        if stored_identity.get(fact) != identity.get(fact):
            raise CheckpointError(f"{fact}: found {identity.get(fact)}, expected {stored_identity.get(fact)} as in {where}")
