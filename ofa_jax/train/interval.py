"""The numbers of the steps since the last record: means, speed and time left."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from ofa_jax.monitor.writers import Number
from ofa_jax.train.step import StepMetrics


class Interval:
    """Collects steps and turns them into one record; then starts anew."""

    def __init__(self, task_names: Sequence[str]):
        self._task_names = tuple(task_names)
        self._began = self._from = time.monotonic()
        self._excluded_s = 0.0
        self._steps: list[StepMetrics] = []
        self._untimed = 0  # steps, skipped ones too, before the clock of the speed was started
        self._skipped = 0  # bad steps, of which nothing but their time counts
        self.examples_per_step = 0  # sequences of the global batch
        self.rejects: Counter[str] = Counter()  # records of this host that were replaced, by dataset

    def time_s(self) -> float:
        """Returns seconds since the loop began."""
        return round(time.monotonic() - self._began, 3)

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Time spent in here (evaluation, saving) does not count against the speed of training."""
        began = time.monotonic()
        yield
        self._excluded_s += time.monotonic() - began

    def start_clock(self) -> float:
        """Starts the clock of the speed anew, after compilation, and returns the seconds until now. Collected steps stay."""
        now = time.monotonic()
        seconds, self._from, self._excluded_s, self._untimed = now - self._from, now, 0.0, len(self._steps) + self._skipped
        return seconds

    def add(self, metrics: StepMetrics) -> None:
        """Adds a finished step's numbers, as host arrays."""
        self._steps.append(metrics)

    def skip(self) -> None:
        """Counts a finished step that changed nothing: its losses would spoil every mean."""
        self._skipped += 1

    def drop(self) -> None:
        """Forgets the steps collected, which a rewind takes back; the clock of `time_s` goes on."""
        self._steps, self._untimed, self._skipped, self._from, self._excluded_s = [], 0, 0, time.monotonic(), 0.0
        self.rejects = Counter()

    def record(self, *, steps_left: int) -> dict[str, Number]:
        """Returns the record of the steps collected (at least one) and starts a new interval.

        Losses are means over accepted steps; `loss/nll/<task>` is nats a token over all the interval's tokens of that task, without
        confidence or smoothing. Speed counts sequences and leaves out compilation, evaluation and saving.
        """
        now = time.monotonic()
        timed = len(self._steps) + self._skipped - self._untimed
        step_s = max(now - self._from - self._excluded_s, 1e-9) / timed if timed else 0.0
        nll = np.sum([m.task_nll for m in self._steps], axis=0)
        tokens = np.sum([m.task_tokens for m in self._steps], axis=0)
        record: dict[str, Number] = {"time_s": self.time_s(), "loss/total": float(np.mean([m.loss for m in self._steps]))}
        for group in self._steps[0].group_loss:
            record[f"loss/{group}"] = float(np.mean([m.group_loss[group] for m in self._steps]))
        for index, name in enumerate(self._task_names):
            if tokens[index] > 0:
                record[f"loss/nll/{name}"] = float(nll[index] / tokens[index])
        record["optimizer/grad_norm"] = float(np.mean([m.grad_norm for m in self._steps]))
        for part in self._steps[0].part_norms:
            record[f"optimizer/grad_norm/{part}"] = float(np.mean([m.part_norms[part] for m in self._steps]))
        record["optimizer/learning_rate"] = float(self._steps[-1].learning_rate)
        for name in self._steps[0].scalars:
            record[name] = float(np.mean([m.scalars[name] for m in self._steps]))
        if self._skipped:
            record["guard/skipped_steps"] = self._skipped
        for dataset, count in sorted(self.rejects.items()):
            record[f"data/rejects/{dataset}"] = count
        record["perf/examples_per_s"] = self.examples_per_step / step_s if step_s else 0.0
        record["time/step_ms"] = step_s * 1e3
        record["time/left_s"] = steps_left * step_s
        self.drop()
        return record
