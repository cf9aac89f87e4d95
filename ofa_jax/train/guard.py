"""Bad steps: a loss or a gradient that is not finite or far above what was usual of late changes nothing.

The compiled step judges itself (`judge`) and, where it is bad, keeps the old state (`select`): parameters, moments, statistics and average
stay as they are to the bit. A skipped update is no update, so `step`, which schedule, moments and checkpoints count by, stays too; the
batch was drawn, so `data_step` goes on. The run then is the one that never drew that batch. The host learns of it with the step's
other numbers, one step late, and never waits for it.

The usual level is a running mean and variance of the logarithm of each number over the accepted steps: of all of them at first, with
weight 1 / window later. It is part of the train state, so that a resumed run decides as the uninterrupted one, and judges nothing before
it has seen a whole window. A number that is not positive has no logarithm: the level starts anew there, so that losses which may be
negative (a VQGAN's, the encouraging bonus) are judged by being finite alone.

After `max_in_a_row` bad steps the host goes back (`rewinds`) to the newest checkpoint from before the row and on with the batches behind
it, or ends the run. Metrics are the same on all hosts, so all decide alike without asking each other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.config.schema import GuardConfig
from ofa_jax.data.batch import Batch
from ofa_jax.monitor.exits import DivergenceError
from ofa_jax.monitor.writers import JsonLines

REASONS = ("loss not finite", "gradient not finite", "loss above the usual", "gradient above the usual")


class Level(NamedTuple):
    """What is usual of a number, by its logarithm over accepted steps."""

    mean: jax.Array  # float32 []
    var: jax.Array  # float32 []
    count: jax.Array  # int32 []: steps seen, at most the window


class GuardState(NamedTuple):
    """What the guard remembers from step to step; part of the train state."""

    loss: Level
    norm: Level
    in_a_row: jax.Array  # int32 []: bad steps since the last accepted one


class Verdict(NamedTuple):
    """What the guard says of a step."""

    accepted: jax.Array  # bool []
    reasons: jax.Array  # bool [4]: which of `REASONS` hold
    usual_loss: jax.Array  # float32 []: before this step; NaN where nothing was seen
    usual_norm: jax.Array  # float32 []: likewise
    in_a_row: jax.Array  # int32 []: bad steps up to this one


def initial_guard() -> GuardState:
    """Returns the guard of a run that has seen nothing."""

    def level() -> Level:
        return Level(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    return GuardState(level(), level(), jnp.zeros((), jnp.int32))


def judge(guard: GuardState, *, loss: jax.Array, grad_norm: jax.Array, config: GuardConfig) -> tuple[GuardState, Verdict]:
    """Returns (the guard after the step, its verdict). loss, grad_norm: float [], of the whole batch, before clipping."""
    reasons = jnp.stack(
        [
            ~jnp.isfinite(loss),
            ~jnp.isfinite(grad_norm),
            _is_above(guard.loss, loss, factor=config.loss_factor, config=config),
            _is_above(guard.norm, grad_norm, factor=config.norm_factor, config=config),
        ]
    )
    accepted = ~jnp.any(reasons)
    in_a_row = jnp.where(accepted, 0, guard.in_a_row + 1)
    seen = GuardState(_after(guard.loss, loss, window=config.window), _after(guard.norm, grad_norm, window=config.window), in_a_row)
    after = select(accepted, seen, guard)._replace(in_a_row=in_a_row)
    return after, Verdict(accepted, reasons, _usual(guard.loss), _usual(guard.norm), in_a_row)


def select(accepted: jax.Array, new: Any, old: Any) -> Any:
    """Returns `new` where `accepted` (bool []) holds, else `old`, leaf by leaf, without a copy of either where XLA can fuse the choice."""
    return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)


def _is_above(level: Level, value: jax.Array, *, factor: float, config: GuardConfig) -> jax.Array:
    if factor == 0.0:
        return jnp.zeros((), bool)
    margin = jnp.maximum(math.log(factor), config.deviations * jnp.sqrt(level.var))
    return (level.count >= config.window) & (_log(value) > level.mean + margin)


def _after(level: Level, value: jax.Array, *, window: int) -> Level:
    count = jnp.minimum(level.count + 1, window)
    weight = 1.0 / count.astype(jnp.float32)
    delta = _log(value) - level.mean
    new = Level(level.mean + weight * delta, (1.0 - weight) * (level.var + weight * delta * delta), count)
    return select(value > 0, new, jax.tree.map(jnp.zeros_like, level))


def _log(value: jax.Array) -> jax.Array:
    return jnp.log(value).astype(jnp.float32)


def _usual(level: Level) -> jax.Array:
    return jnp.where(level.count > 0, jnp.exp(level.mean), jnp.nan)


@dataclasses.dataclass(frozen=True)
class BadStep:
    """A step that was skipped, as the host learns of it."""

    step: int  # the update that it would have been, from 1
    data_step: int
    reasons: tuple[str, ...]  # of `REASONS`
    loss: float
    grad_norm: float
    usual_loss: float  # NaN where the guard has seen nothing
    usual_norm: float
    in_a_row: int

    @property
    def first_data_step(self) -> int:
        """The data step of the first of its row."""
        return self.data_step - self.in_a_row + 1

    def sentence(self) -> str:
        """Returns what is printed of it, with the command that draws its batch."""
        return (
            f"bad step: update {self.step} (data_step {self.data_step}) was skipped: {', '.join(self.reasons)} "
            f"(loss {self.loss:.4g}, usual {self.usual_loss:.4g}; gradient {self.grad_norm:.4g}, usual {self.usual_norm:.4g}); "
            f"{self.in_a_row} in a row; to see its batch: launch/show.py --config=... --data_step={self.data_step}"
        )


def bad_step(verdict: Verdict, *, step: int, data_step: int, loss: float, grad_norm: float) -> BadStep:
    """Returns what to say of a step that was not accepted. verdict: on the host. step: the update that it would have been."""
    reasons = tuple(name for name, holds in zip(REASONS, verdict.reasons, strict=True) if holds)
    usual = float(verdict.usual_loss), float(verdict.usual_norm)
    return BadStep(step, data_step, reasons, float(loss), float(grad_norm), *usual, int(verdict.in_a_row))


class BadSteps:
    """Lists bad steps in `<workdir>/bad_steps.jsonl` with the rows of this host (`bad_steps_<host>.jsonl` on hosts after the first), and
    the rewinds behind them.

    A run that goes on from `data_step` makes later batches again, so their lines are dropped: the file tells of every batch once.
    """

    def __init__(self, workdir: Path, *, host: int, data_step: int):
        self.path = workdir / ("bad_steps.jsonl" if host == 0 else f"bad_steps_{host}.jsonl")
        self._lines: JsonLines | None = None
        if self.path.exists():
            self._open(data_step)

    def _open(self, data_step: int) -> JsonLines:
        self._lines = JsonLines(self.path, step=data_step - 1, by="data_step")
        return self._lines

    def add(self, bad: BadStep, batch: Batch) -> None:
        """Writes one line. `elements`: by block, the ranges (first, last) of this host's rows in the block's endless order."""
        elements = {name: element_ranges(block.elements) for name, block in batch.blocks.items()}
        self._write({**dataclasses.asdict(bad), "elements": elements}, bad.data_step)

    def add_rewind(self, rewind: Mapping[str, Any]) -> None:
        """Writes a line of kind `rewind`; see `describe_rewind`."""
        last = int(rewind["skipped_data_steps"][1])
        self._write({"step": rewind["to_step"], "data_step": last, "rewind": dict(rewind)}, last)

    def _write(self, record: Mapping[str, Any], data_step: int) -> None:
        # Made when there is something to say: most runs have none.
        lines = self._lines or self._open(data_step)
        lines.write({name: str(v) if isinstance(v, float) and not math.isfinite(v) else v for name, v in record.items()})

    def close(self) -> None:
        """Closes the file."""
        if self._lines is not None:
            self._lines.close()


def element_ranges(elements: np.ndarray) -> list[list[int]]:
    """Returns the runs of consecutive numbers in int `elements`, in order, each as [first, last]."""
    cuts = np.flatnonzero(np.diff(elements) != 1) + 1
    return [[int(part[0]), int(part[-1])] for part in np.split(elements, cuts) if len(part)]


def describe_rewind(bad: BadStep, *, to_step: int, to_data_step: int) -> dict[str, Any]:
    """Returns the record of a rewind from a row of bad steps that ends with `bad`: to the checkpoint of `to_step`, at `to_data_step`.

    All batches drawn since that checkpoint, up to the last bad one, are skipped: `skipped_data_steps` is (first, last).
    """
    return {
        "from_step": bad.step - 1,
        "to_step": to_step,
        "skipped_data_steps": [to_data_step, bad.data_step],
        "why": f"{bad.in_a_row} bad steps in a row, the last: {', '.join(bad.reasons)}",
    }


def too_many(bad: BadStep, *, config: GuardConfig, path: Path, why_no_rewind: str) -> DivergenceError:
    """Returns the error that ends a run after a row of bad steps; path: the list of them."""
    return DivergenceError(
        f"update {bad.step}: found {bad.in_a_row} bad steps in a row (data_step {bad.first_data_step} to {bad.data_step}, the last: "
        f"{', '.join(bad.reasons)}; loss {bad.loss:.4g}, usual {bad.usual_loss:.4g}; gradient {bad.grad_norm:.4g}, usual "
        f"{bad.usual_norm:.4g}), expected fewer than guard.max_in_a_row={config.max_in_a_row}; {why_no_rewind}; {path} lists them, "
        f"launch/show.py --config=... --data_step={bad.data_step} draws the batch; then go on from the newest checkpoint with larger "
        "--config.guard.rewinds, --config.guard.max_in_a_row or factors, or start another run with a lower optimizer.learning_rate"
    )
