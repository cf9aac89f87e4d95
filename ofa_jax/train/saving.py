"""Saves of a run as the loop sees them: polled at every step, timed, and written down in `<workdir>/checkpoints.jsonl`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofa_jax.checkpoint.base import Base
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import CheckpointError, ConfigError, nearest
from ofa_jax.config.schema import AnyRun
from ofa_jax.monitor.writers import Number
from ofa_jax.parallel import hosts
from ofa_jax.train.state import TrainState

EVALUATIONS = ("eval", "held_out")  # areas of the numbers that evaluations during training give, each at steps of its own


class CheckpointEvents:
    """Appends lines to `<workdir>/checkpoints.jsonl`, in the first process: what was saved, found damaged, allowed to change."""

    def __init__(self, workdir: Path):
        self._path = workdir / "checkpoints.jsonl"

    def write(self, event: str, *, step: int, **facts: Any) -> None:
        """Appends one line, whole, with the time of day."""
        if hosts.is_first():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = {"event": event, "step": step, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


class Saving:
    """Saves the states of one run with what their metadata needs, and knows how long it took."""

    def __init__(
        self,
        config: AnyRun,
        manager: CheckpointManager,
        events: CheckpointEvents,
        *,
        identity: dict[str, str],
        consents: tuple[Any, ...],
        base: Base | None = None,
    ):
        """base: to which checkpoints leave what stays as it is."""
        self._config, self._manager, self._events = config, manager, events
        self._identity, self._consents, self._base = identity, consents, base
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self._numbers: dict[str, Number] = {}
        self._asked = False  # for a stop, after a failure

    @property
    def manager(self) -> CheckpointManager:
        """The checkpoints that are written to."""
        return self._manager

    def evaluated(self, step: int, numbers: Mapping[str, Number]) -> None:
        """Keeps the numbers of an evaluation of the state of `step`, for its checkpoint, beside those of another one at the same step.

        Raises ConfigError where `checkpoint.best_metric` is of this evaluation's area (`eval/...`, `held_out/...`), or of none, and not
        among them.
        """
        name = self._config.checkpoint.best_metric
        area = name.split("/")[0]
        elsewhere = area in EVALUATIONS and area not in {number.split("/")[0] for number in numbers}
        if name and name not in numbers and not elsewhere:
            raise ConfigError(f"checkpoint.best_metric: found {name}, which is no number of the evaluation; {nearest(name, numbers)}")
        at, known = self._evaluated
        found = {key: float(value) for key, value in numbers.items()}
        self._evaluated = (step, {**known, **found} if at == step else found)

    def save(self, step: int, state: TrainState, *, facts: Mapping[str, Any] | None = None, wait: bool) -> None:
        """Starts the save of `state`, with the run's `facts` (`About.facts`); `wait` returns when it is on disk. Raises `CheckpointError`
        when an earlier save failed."""
        at, numbers = self._evaluated
        self._manager.save(
            step,
            state,
            config=self._config,
            identity=self._identity,
            metrics=numbers if at == step else None,
            consents=self._consents,
            facts=facts,
            base=self._base,
            wait=wait,
        )
        self._note()

    def check(self) -> None:
        """Returns at once; raises `CheckpointError` where the save under way has failed or is late. One of several processes must not end
        alone, as the others would wait for it: it asks for a stop, which all make at the same step, where they tell each other
        (`CheckpointManager.wait`)."""
        try:
            self._manager.check()
        except CheckpointError:
            if hosts.count() == 1:
                raise
            if not self._asked:
                self._asked = True
                os.kill(os.getpid(), signal.SIGTERM)  # what JAX's preemption service hears
        self._note()

    def numbers(self) -> dict[str, Number]:
        """Returns the metrics of the saves that were done since this was asked last: the longest, where there were several."""
        found, self._numbers = self._numbers, {}
        return found

    def _note(self) -> None:
        for saved in self._manager.done():
            times = {"checkpoint/blocked_s": round(saved.blocked_s, 4), "checkpoint/save_s": round(saved.save_s, 4)}
            self._numbers = {name: max(value, self._numbers.get(name, 0.0)) for name, value in times.items()}
            self._events.write("saved", step=saved.step, **{name.removeprefix("checkpoint/"): value for name, value in times.items()})
