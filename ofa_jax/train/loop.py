"""The training loop: evaluate, save, take batch(data_step), step, log.

Saving comes before the next batch is taken, so the position in the data is the saved `data_step` and nothing else; batches made
ahead are simply made again. The same call resumes a run from its newest complete checkpoint. Numbers leave the device one step
late: while step n runs, those of step n-1 are read, and nothing else waits for the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.load import run_folder
from ofa_jax.config.render import config_hash, to_json
from ofa_jax.config.schema import AnyRun
from ofa_jax.data.batch import Batch, Block
from ofa_jax.monitor.writers import Number
from ofa_jax.parallel import hosts
from ofa_jax.parallel.mesh import check_rows, make_mesh
from ofa_jax.train.hooks import Hook
from ofa_jax.train.interval import Interval
from ofa_jax.train.objective import make_objective
from ofa_jax.train.saving import CheckpointEvents, Saving
from ofa_jax.train.start import start_state
from ofa_jax.train.state import TrainState, abstract_state
from ofa_jax.train.step import StepMetrics, make_train_step, num_compilations, put_batch

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal after saving; the same command goes on


class BatchIterator(Protocol):
    """An endless iterator of batches."""

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


class BatchSource(Protocol):
    """What the loop asks of the pipeline."""

    def iterate(self, start: int) -> BatchIterator: ...


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    state: TrainState
    step: int
    stopped: bool  # by a signal, before the last step


def train(
    config: AnyRun,
    pipeline: BatchSource,
    hooks: Sequence[Hook] = (),
    *,
    task_names: Sequence[str],
    identity: dict[str, str] | None = None,
    allow: Sequence[str] = (),
    devices: Sequence[jax.Device] | None = None,
) -> TrainResult:
    """Trains up to `config.steps`, from the newest checkpoint of the run where there is one, and returns the state reached.

    task_names: names by task id, for the metrics. identity: facts outside the config that a resumed run must share, by name.
    allow: changes that a resumed run may have (`check_resume`). devices: default all. SIGTERM or SIGINT finishes the step under way,
    saves and returns with `stopped`; a second SIGINT interrupts at once. Raises `UserError` for what a user can mend.
    """
    identity = dict(identity or {})
    mesh = make_mesh(config.mesh, devices=devices)
    check_rows(config.data.row_blocks, mesh)
    objective = make_objective(config)
    objective.check()
    workdir = run_folder(config)
    abstract = abstract_state(config)
    _say(f"workdir {workdir}   config {config_hash(config)[:12]}   seed {config.seed}   precision {config.precision}")
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    kind = next(iter(mesh.devices.flat)).device_kind
    parameters = objective.num_params(abstract.params)
    _say(f"devices {mesh.size} {kind} ({shape}), {hosts.count()} process(es)   parameters {parameters:,}")
    with contextlib.ExitStack() as stack:
        manager = CheckpointManager(workdir, config.checkpoint)
        stack.callback(manager.close)
        events = CheckpointEvents(workdir)
        state, consents = start_state(
            config, manager, identity=identity, mesh=mesh, abstract=abstract, allow=allow, events=events, say=_say
        )
        step = int(state.step)
        for consent in consents:
            if consent["step"] == step:
                events.write("allowed", **consent)
        manager.prepare(state)
        if hosts.is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / "config.json").write_text(to_json(config))
        for hook in hooks:
            stack.callback(hook.close)
            hook.start(step)
        stop = stack.enter_context(_stop_flag())
        saving = Saving(config, manager, events, identity=identity, consents=consents)
        run = _Run(config, mesh, saving, hooks=hooks, task_names=task_names, stop=stop)
        return run.loop(state, step, pipeline)


class _Run:
    """The loop and what it holds."""

    def __init__(
        self,
        config: AnyRun,
        mesh: Mesh,
        saving: Saving,
        *,
        hooks: Sequence[Hook],
        task_names: Sequence[str],
        stop: _Stop,
    ):
        self.config, self.mesh, self.saving = config, mesh, saving
        self.hooks, self.stop = hooks, stop
        self.objective = make_objective(config)
        self.train_step = make_train_step(config, mesh, num_tasks=len(task_names))
        self.interval = Interval(task_names)
        self.unread: tuple[int, Batch, StepMetrics] | None = None  # (step, its batch, numbers still on the device)
        self.saved_at = time.monotonic()
        if config.checkpoint.every_s > 0 and hosts.count() > 1:
            every = config.checkpoint
            why = f"checkpoint.every_s = {every.every_s:g} is for one process, whose clock decides alone"
            _say(f"checkpoints every {every.every_steps} steps; {why}")

    def loop(self, state: TrainState, step: int, pipeline: BatchSource) -> TrainResult:
        config, start = self.config, step
        batches: BatchIterator | None = None
        try:
            while True:
                self.saving.check()
                last = step == config.steps
                stopped = not last and self.stop.now(step)
                if last or stopped:
                    self._read()
                if not stopped:
                    self._evaluate(step, state, last=last)
                if last or stopped or (step > start and self._save_due(step)):
                    self._save(step, state, wait=last or stopped)
                if last or stopped:
                    break
                if batches is None:
                    batches = pipeline.iterate(int(state.data_step))
                    _say("compiling the training step")
                batch = next(batches)
                blocks = self._put(batch)
                # Any transfer that is not asked for by name would be a hidden wait for the device.
                with jax.transfer_guard("disallow"):
                    state, metrics = self.train_step(state, blocks)
                step += 1
                self._read()
                self.unread = (step, batch, metrics)
                if step == start + 1:
                    jax.block_until_ready(metrics)
                    _say(f"first step after {self.interval.start_clock():.1f} s")
        finally:
            if batches is not None:
                batches.close()
        if stopped:
            _say(f"stopped by a signal at step {step} and saved; the same command goes on")
        return TrainResult(state, step, stopped)

    def _put(self, batch: Batch) -> dict[str, Block]:
        for hook in self.hooks:
            hook.batch(batch)
        self.objective.check_batch(batch, num_hosts=hosts.count())
        self.interval.examples_per_step = hosts.count() * self.objective.num_examples(batch)
        return put_batch(batch, self.mesh)

    def _evaluate(self, step: int, state: TrainState, *, last: bool) -> None:
        with self.interval.excluded():
            for hook in self.hooks:
                numbers = hook.evaluate(step, state, last=last)
                if numbers:
                    self.saving.evaluated(step, numbers)
                    self._log({"step": step, "data_step": step, "time_s": self.interval.time_s(), **numbers})

    def _save_due(self, step: int) -> bool:
        every = self.config.checkpoint
        if step % every.every_steps == 0:
            return True
        # The clocks of several hosts disagree, and all must save at the same step: there the rule by time does not apply.
        return every.every_s > 0 and hosts.count() == 1 and time.monotonic() - self.saved_at >= every.every_s

    def _save(self, step: int, state: TrainState, *, wait: bool) -> None:
        self._read()  # a run killed after this save does not make this step's record again
        with self.interval.excluded():
            self.saving.save(step, state, wait=wait)
        self.saved_at = time.monotonic()

    def _read(self) -> None:
        """Reads the numbers of the newest finished step, if they are still on the device, and logs where an interval ends."""
        if self.unread is None:
            return
        step, batch, metrics = self.unread
        self.unread = None
        self.interval.add(jax.device_get(metrics))
        self.interval.rejects.update(reject.dataset for reject in batch.rejects)
        if step % self.config.log_every == 0 or step == self.config.steps:
            programs = num_compilations(self.train_step)
            if programs != 1:
                found = f"the training step was compiled {programs} times by step {step}"
                raise RuntimeError(f"{found}, expected once: shapes or placements changed")
            record = {"step": step, "data_step": batch.data_step, **self.interval.record(steps_left=self.config.steps - step)}
            record |= self.saving.numbers()
            for hook in self.hooks:
                record |= hook.numbers(batch.data_step)
            self._log(record)

    def _log(self, record: dict[str, Number]) -> None:
        if hosts.is_first():
            for hook in self.hooks:
                hook.log(record)


def _say(text: str) -> None:
    if hosts.is_first():
        print(text, flush=True)


class _Stop:
    """Whether a signal asked the run to stop. One process decides alone; several agree on one step by JAX's preemption service."""

    def __init__(self) -> None:
        self.asked = False

    def now(self, step: int) -> bool:
        if hosts.count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked


@contextlib.contextmanager
def _stop_flag() -> Iterator[_Stop]:
    """Installs the handlers of SIGTERM and SIGINT, and puts the old ones back.

    With several processes JAX's own SIGTERM handler stays: it is what tells the others. Outside the main thread Python allows no
    handler, and the caller's stay.
    """
    stop = _Stop()
    if hosts.count() > 1 or threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        del frame
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
