"""What can be added to the training loop: hooks, called at fixed places. The loop itself knows no feature.

`phase` tells where the loop is. Order of one turn: `evaluate` (the state of the step just reached), save, `batch` (the host's batch,
before it is used), the step, `numbers`, `derive` and `log` (of the step before, once every `log_every` steps). `rewind` comes where
the run goes back to a checkpoint, `close` once, also after an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ofa_jax.data.batch import Batch, digest
from ofa_jax.monitor.exits import Life
from ofa_jax.monitor.heartbeat import Heartbeat
from ofa_jax.monitor.reference import say
from ofa_jax.monitor.writers import JsonLines, Number, TensorBoard
from ofa_jax.parallel import hosts


class Hook:
    """Does nothing; a hook overrides what it needs. Methods run on the training thread: keep them short or in a thread of their own."""

    def start(self, step: int) -> None:
        """Called once before the first turn, with the step the run goes on from."""

    def phase(self, step: int, name: str) -> None:
        """Called where the run begins to "restore" the state that it starts from, and where the loop, with `step` steps made, begins to
        "evaluate", to "save", to wait for "data", to "compile" (the first step) or to "step"."""

    def is_evaluation(self, step: int, *, last: bool) -> bool:
        """Says whether `evaluate` will take as long as an evaluation does: the phase is then called so, and the state given to it is for
        certain that of `step`. At other steps the loop takes the update under way for made, though it may turn out to have been skipped."""
        return False

    def evaluate(self, step: int, state: Any, *, last: bool) -> Mapping[str, Number] | None:
        """Called before every step and once after the last; may return numbers to be logged. The state must not be changed or kept."""
        return None

    def batch(self, batch: Batch) -> None:
        """Called with every batch as it comes from the pipeline."""

    def numbers(self, data_step: int) -> Mapping[str, Number]:
        """Called where an interval ends, with the data step of its last batch; returns what is to be logged beside the loop's numbers.

        A later batch may have come already: the loop reads the numbers of a step while the next one runs.
        """
        return {}

    def derive(self, record: Mapping[str, Number]) -> Mapping[str, Number]:
        """Called in the first process with a record before it is logged, of an interval or of an evaluation; returns what follows from its
        numbers, to be logged too."""
        return {}

    def log(self, record: Mapping[str, Number]) -> None:
        """Called with the numbers of a finished step; always has "step", "data_step" and "time_s"."""

    def rewind(self, step: int, *, data_step: int) -> None:
        """Called where the run goes back to `step` and on with the batch of `data_step`: what was logged of later ones is made again."""

    def close(self) -> None:
        """Called once at the end."""


class FollowLife(Hook):
    """Tells the record of this process's life, and its hang watch, what the loop is at."""

    def __init__(self, life: Life, heartbeat: Heartbeat | None = None):
        self._life, self._heartbeat = life, heartbeat

    def start(self, step: int) -> None:
        self._life.step = step

    def phase(self, step: int, name: str) -> None:
        self._life.step = step
        if self._heartbeat is not None:
            self._heartbeat.enter(step, name)


class TimeByCause(Hook):
    """Logs the seconds of this process by what they went into: `goodput/<phase>_s`, and `goodput/share`, the steps' part of all.

    `time/data_wait_ms` is how long a step of the interval waited for its batch, on average.
    """

    def __init__(self) -> None:
        self._spent: dict[str, float] = {"start": 0.0}
        self._phase, self._since = "start", time.monotonic()
        self._waits, self._waited_s = 0, 0.0  # batches of the interval, and what had been spent on data before it

    def phase(self, step: int, name: str) -> None:
        del step
        self._waits += name == "data"
        self._enter(name)

    def _enter(self, name: str) -> None:
        now = time.monotonic()
        self._spent[self._phase] = self._spent.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = name, now

    def numbers(self, data_step: int) -> Mapping[str, Number]:
        del data_step
        self._enter(self._phase)
        found: dict[str, Number] = {f"goodput/{name}_s": round(seconds, 3) for name, seconds in self._spent.items()}
        waited_s = self._spent.get("data", 0.0)
        if self._waits:
            found["time/data_wait_ms"] = (waited_s - self._waited_s) / self._waits * 1e3
        self._waits, self._waited_s = 0, waited_s
        return found | {"goodput/share": self._spent.get("step", 0.0) / max(sum(self._spent.values()), 1e-9)}


class Evaluate(Hook):
    """Logs what `measure(state)` returns, every `every_steps` steps (0: never before the end) and after the last; `launch` gives it the
    evaluator."""

    def __init__(self, measure: Callable[[Any], Mapping[str, Number]], *, every_steps: int):
        self._measure, self._every_steps = measure, every_steps
        self._done = 0  # the step of the last evaluation, or of the start

    def start(self, step: int) -> None:
        self._done = step

    def rewind(self, step: int, *, data_step: int) -> None:
        self._done = step

    def is_evaluation(self, step: int, *, last: bool) -> bool:
        return last or (self._every_steps > 0 and step % self._every_steps == 0 and step > self._done)

    def evaluate(self, step: int, state: Any, *, last: bool) -> Mapping[str, Number] | None:
        if not self.is_evaluation(step, last=last):
            return None
        self._done = step
        return self._measure(state)


class WriteMetrics(Hook):
    """Writes every record to `<workdir>/metrics.jsonl` and to TensorBoard events in `<workdir>/tensorboard`."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._lines: JsonLines | None = None
        self._board: TensorBoard | None = None
        self.time_s = 0.0  # training time before this process, from the last line kept

    def start(self, step: int) -> None:
        self._open(step)
        assert self._lines is not None
        self.time_s = float((self._lines.last or {}).get("time_s") or 0.0)

    def rewind(self, step: int, *, data_step: int) -> None:
        self.close()
        self._open(step)

    def _open(self, step: int) -> None:
        self._lines = JsonLines(self._workdir / "metrics.jsonl", step=step)
        self._board = TensorBoard(self._workdir / "tensorboard", step=step)

    def log(self, record: Mapping[str, Number]) -> None:
        record = dict(record)
        record["time_s"] = round(float(record["time_s"]) + self.time_s, 3)
        if self._lines is not None:
            self._lines.write(record)
        if self._board is not None:
            self._board.write(record)

    def close(self) -> None:
        for writer in (self._lines, self._board):
            if writer is not None:
                writer.close()


class WriteDigests(Hook):
    """Writes the digest of every batch of this host to `<workdir>/batches_<host>.jsonl`, one line a step.

    Two runs saw the same data, bit for bit, exactly if their files are equal; a resumed run goes on in the same file.
    """

    def __init__(self, workdir: Path, *, host: int):
        self._path = workdir / f"batches_{host}.jsonl"
        self._lines: JsonLines | None = None

    def start(self, step: int) -> None:
        self._lines = None

    def rewind(self, step: int, *, data_step: int) -> None:
        self.close()
        self._lines = None

    def batch(self, batch: Batch) -> None:
        # Opened with the first batch, which says where the data goes on: behind skipped updates that is further than the step.
        if self._lines is None:
            self._lines = JsonLines(self._path, step=batch.data_step)
        self._lines.write({"step": batch.data_step + 1, "data_step": batch.data_step, "digest": digest(batch)})

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()


class RejectCounts(Protocol):
    """What `StopOnRejects` asks of the quarantine of this host."""

    @property
    def rows(self) -> int: ...

    @property
    def rejected(self) -> int: ...

    def judge(self, *, rejected: int | None = None, rows: int | None = None) -> None: ...


class StopOnRejects(Hook):
    """With several hosts: applies the stop rule for bad records to the counts of all of them, so that they stop at the same step.

    The sum is taken every `every_steps` steps, as it waits for the slowest host. (With one host the pipeline judges every batch.)
    """

    def __init__(self, quarantine: RejectCounts, *, every_steps: int):
        self._quarantine, self._every_steps = quarantine, every_steps

    def evaluate(self, step: int, state: Any, *, last: bool) -> None:
        if step and (last or step % self._every_steps == 0):
            rejected, rows = hosts.sums(self._quarantine.rejected, self._quarantine.rows)
            self._quarantine.judge(rejected=rejected, rows=rows)


class ProgressLine(Hook):
    """Prints one line a record: step, loss, nats a token of each task, examples a second, time left; or the metrics of an evaluation."""

    def __init__(self, *, steps: int):
        self._steps = steps

    def log(self, record: Mapping[str, Number]) -> None:
        if "loss/total" in record:
            print(progress_text(record, steps=self._steps), flush=True)
        held_out = [
            f"{name.removeprefix('held_out/nll/')} {value:.3f}" for name, value in record.items() if name.startswith("held_out/nll/")
        ]
        if held_out:
            print(f"step {record['step']}/{self._steps}  held out: {', '.join(held_out)}", flush=True)
        found = {name: value for name, value in record.items() if name.startswith("eval/") and not name.endswith("/baseline")}
        if found:
            values = ", ".join(f"{name.removeprefix('eval/')} {float(value):.3f}" for name, value in found.items())
            print(f"step {record['step']}/{self._steps}  evaluated: {values}", flush=True)


def progress_text(record: Mapping[str, Number], *, steps: int) -> str:
    """Returns the progress line of a record."""
    prefix = "loss/nll/"
    shown = [f"{name[len(p) :]} {value:.3f}" for p in (prefix, "vqgan/") for name, value in record.items() if name.startswith(p)]
    tasks = "  ".join(shown)
    left = float(record["time/left_s"])
    rate = float(record["perf/examples_per_s"])
    compared = record.get("reference/loss/total")
    loss = f"loss {record['loss/total']:.4f}" + ("" if compared is None else f" ({say(float(compared))})")
    mfu = f"  MFU {100 * float(record['perf/mfu']):.1f} %" if "perf/mfu" in record else ""
    return f"step {record['step']}/{steps}  {loss}  [{tasks}]  {rate:.1f} examples/s{mfu}  {duration(left)} left"


def duration(seconds: float) -> str:
    """Returns `1h02m`, `12m05s` or `7s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
