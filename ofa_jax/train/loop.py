"""The training loop: evaluate, save, take batch(data_step), step, log.

Saving comes before the next batch is taken, so the position in the data is the saved `data_step` and nothing else; batches made
ahead are simply made again. The same call resumes a run from its newest complete checkpoint. Numbers leave the device one step
late: while step n runs, those of step n-1 are read, and nothing else waits for the device.

`step` counts updates, `data_step` batches; they part where the guard skips an update (`train/guard`). That is known when the step's numbers
are read, so the loop takes the update under way for made until then, and reads first where it matters: to save, to evaluate, to end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.load import run_folder
from ofa_jax.config.render import config_hash, to_json
from ofa_jax.config.schema import AnyRun, RunConfig
from ofa_jax.data.batch import Batch, Block
from ofa_jax.monitor.writers import Number
from ofa_jax.parallel import hosts
from ofa_jax.parallel.mesh import batch_sharding, check_rows, make_mesh
from ofa_jax.train.guard import BadStep, BadSteps, bad_step, describe_rewind, too_many
from ofa_jax.train.hooks import Hook
from ofa_jax.train.interval import Interval
from ofa_jax.train.objective import make_objective
from ofa_jax.train.pretraining import Pretraining
from ofa_jax.train.reward import Rewarder, SelfCritical
from ofa_jax.train.saving import CheckpointEvents, Saving
from ofa_jax.train.start import restore_state, start_state
from ofa_jax.train.state import TrainState, abstract_state
from ofa_jax.train.step import StepMetrics, abstract_blocks, make_train_step, put_batch


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
    rewarder: Rewarder | None = None,
) -> TrainResult:
    """Trains up to `config.steps`, from the newest checkpoint of the run where there is one, and returns the state reached.

    task_names: names by task id, for the metrics. identity: facts outside the config that a resumed run must share, by name.
    allow: changes that a resumed run may have (`check_resume`). devices: default all. rewarder: of a run with
    `reward`. SIGTERM or SIGINT finishes the step under way,
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
        manager = CheckpointManager(workdir, config.checkpoint, base=config.init.checkpoint)
        stack.callback(manager.close)
        events = CheckpointEvents(workdir)
        for hook in hooks:
            hook.phase(0, "restore")
        start = start_state(config, manager, identity=identity, mesh=mesh, abstract=abstract, allow=allow, events=events, say=_say)
        state = start.state
        step, data_step = int(state.step), int(state.data_step)
        for consent in start.consents:
            if consent["step"] == step:
                events.write("allowed", **consent)
        manager.prepare(state, base=start.base)
        if hosts.is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / "config.json").write_text(to_json(config))
        for hook in hooks:
            stack.callback(hook.close)
            hook.start(step)
        stop = stack.enter_context(_stop_flag())
        bad_steps = BadSteps(workdir, host=hosts.index(), data_step=data_step)
        stack.callback(bad_steps.close)
        saving = Saving(config, manager, events, identity=identity, consents=start.consents, base=start.base)
        critical = None
        if isinstance(config, RunConfig) and config.reward:
            assert rewarder is not None and isinstance(objective, Pretraining)
            critical = SelfCritical(config, mesh, objective.graphdef, rewarder)
            stack.callback(critical.close)
        run = _Run(config, mesh, saving, hooks=hooks, task_names=task_names, stop=stop, bad_steps=bad_steps, critical=critical)
        return run.loop(state, pipeline)


def _place(values: Any, like: Any) -> Any:
    """Numbers put where the arrays of `like` lie, as arrays of their types."""
    return jax.tree.map(lambda value, a: jax.device_put(np.asarray(value, a.dtype), a.sharding), values, like)


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
        bad_steps: BadSteps,
        critical: SelfCritical | None = None,
    ):
        self.critical = critical
        self.config, self.mesh, self.saving, self.manager = config, mesh, saving, saving.manager
        self.hooks, self.stop, self.bad_steps = hooks, stop, bad_steps
        self.objective = make_objective(config)
        self.num_tasks = len(task_names)
        self.compiled: Any = None  # the training step, which refuses shapes and placements that are not those it was compiled for
        self.interval = Interval(task_names)
        self.step = 0  # updates known to be made
        self.data_step = 0  # batches drawn
        self.unread: tuple[Batch, StepMetrics] | None = None  # a batch, and its numbers still on the device
        self.bad: BadStep | None = None  # the last of a row of bad steps that is too long
        latest = self.manager.latest()
        self.rewinds: list[dict[str, Any]] = [] if latest is None else self.manager.facts(latest).get("rewinds", [])
        self.saved_at, self.saved_step = time.monotonic(), -1
        if config.checkpoint.every_s > 0 and hosts.count() > 1:
            every = config.checkpoint
            why = f"checkpoint.every_s = {every.every_s:g} is for one process, whose clock decides alone"
            _say(f"checkpoints every {every.every_steps} steps; {why}")

    def loop(self, state: TrainState, pipeline: BatchSource) -> TrainResult:
        config = self.config
        self.step, self.data_step = int(state.step), int(state.data_step)
        self.saved_step = self.step
        batches: BatchIterator | None = None
        turn, asked = 0, False
        try:
            while True:
                self.saving.check()
                turn += 1  # processes agree on the turn to stop at, which must come without gaps
                asked |= self.stop.now(turn)
                if self.bad is None and (asked or self._must_know(self._believed())):
                    self._read()
                if self.bad is not None:
                    if batches is not None:
                        batches.close()
                        batches = None
                    state = self._go_back(self.bad)
                    continue
                step = self._believed()
                last = step == config.steps
                stopped = asked and not last
                if not stopped:
                    if any(hook.is_evaluation(step, last=last) for hook in self.hooks):
                        self._enter(step, "evaluate")
                    self._evaluate(step, state, last=last)
                # The clock may make a save due only now, when the step is not known: then it waits for the next turn.
                if last or stopped or (self.unread is None and self._save_due(step)):
                    self._enter(step, "save")
                    self._save(step, state, wait=last or stopped)
                if last or stopped:
                    break
                if batches is None:
                    batches = pipeline.iterate(self.data_step)
                    if self.compiled is None:
                        _say("compiling the training step")
                        self._enter(step, "compile")
                        lowered = self._trace(state)  # while other processes make the first batch
                self._enter(step, "data")
                batch = next(batches)
                self._enter(step, "compile" if self.compiled is None else "step")
                blocks = self._put(batch)
                told: dict[str, float] = {}
                if self.compiled is None:
                    self.compiled = lowered.compile()
                if self.critical is not None:
                    blocks, told = self.critical(state, batch, blocks)
                # Any transfer that is not asked for by name would be a hidden wait for the device.
                with jax.transfer_guard("disallow"):
                    state, metrics = self.compiled(state, blocks)
                if told:
                    metrics = metrics._replace(scalars={**metrics.scalars, **told})
                self.data_step = batch.data_step + 1
                self._read()
                self.unread = (batch, metrics)
                if turn == 1:
                    jax.block_until_ready(metrics)
                    _say(f"first step after {self.interval.start_clock():.1f} s")
        finally:
            if batches is not None:
                batches.close()
        if stopped:
            _say(f"stopped by a signal at step {step} and saved; the same command goes on")
        return TrainResult(state, step, stopped)

    def _trace(self, state: TrainState) -> Any:
        """Returns the training step traced for the config's shapes, to be compiled: what the host does alone of it."""
        step: Any = make_train_step(self.config, self.mesh, num_tasks=self.num_tasks)
        return step.lower(state, abstract_blocks(self.config, batch_sharding(self.mesh)))

    def _believed(self) -> int:
        """Updates made, if the one under way is not skipped."""
        return self.step + (self.unread is not None)

    def _must_know(self, step: int) -> bool:
        return step == self.config.steps or self._save_due(step) or any(hook.is_evaluation(step, last=False) for hook in self.hooks)

    def _go_back(self, bad: BadStep) -> TrainState:
        """Returns the state of the newest checkpoint from before a row of bad steps, to go on behind the last of them, `bad`.

        One that was saved within the row, as when the run was stopped there, is deleted: the run would have gone further back without the
        stop. Raises `DivergenceError` where the run may not go back.
        """
        guard, manager = self.config.guard, self.manager
        manager.wait()
        steps = manager.steps()
        before = [step for step in steps if manager.facts(step).get("data_step", step) <= bad.first_data_step]
        found = hosts.gather(str(max(before, default=None)).encode())  # a shared disk may show the newest to one host later than to another
        target = None if b"None" in found else min(int(step) for step in found)
        why = ""
        if len(self.rewinds) >= guard.rewinds:
            why = f"the run has gone back {len(self.rewinds)} times of guard.rewinds={guard.rewinds}"
        elif target is None:
            why = "there is no checkpoint to go back to"
        if why or target is None:
            raise too_many(bad, config=guard, path=self.bad_steps.path, why_no_rewind=why)
        state = restore_state(self.config, manager, target, mesh=self.mesh, abstract=abstract_state(self.config))
        for step in steps:
            if step > target:
                manager.delete(step)
        rewind = describe_rewind(bad, to_step=target, to_data_step=int(state.data_step))
        counters = {"data_step": bad.data_step + 1, "in_a_row": 0}
        placed = _place(counters, {"data_step": state.data_step, "in_a_row": state.guard.in_a_row})
        state = dataclasses.replace(state, data_step=placed["data_step"], guard=state.guard._replace(in_a_row=placed["in_a_row"]))
        self.rewinds.append(rewind)
        self.bad_steps.add_rewind(rewind)
        skipped = "data_step {} to {}".format(*rewind["skipped_data_steps"])
        _say(f"rewind {len(self.rewinds)} of {guard.rewinds}: from step {bad.step - 1} to {target}, without {skipped}: {rewind['why']}")
        # A step may be under way on the batch behind the row: it belongs to what is given up, and its batch comes again.
        self.unread, self.bad = None, None
        self.step, self.data_step, self.saved_step = target, bad.data_step + 1, target
        self.interval.drop()
        for hook in self.hooks:
            hook.rewind(target, data_step=self.data_step)
        return state

    def _enter(self, step: int, phase: str) -> None:
        with self.interval.excluded():  # writing a trace takes seconds
            for hook in self.hooks:
                hook.phase(step, phase)

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
                    self._log({"step": step, "data_step": self.data_step, "time_s": self.interval.time_s(), **numbers})

    def _save_due(self, step: int) -> bool:
        if step == self.saved_step:
            return False
        every = self.config.checkpoint
        if step % every.every_steps == 0:
            return True
        # The clocks of several hosts disagree, and all must save at the same step: there the rule by time does not apply.
        return every.every_s > 0 and hosts.count() == 1 and time.monotonic() - self.saved_at >= every.every_s

    def _save(self, step: int, state: TrainState, *, wait: bool) -> None:
        """Saves the state of `step`, whose numbers have been read: a run killed after this save does not make its record again."""
        with self.interval.excluded():
            self.saving.save(step, state, facts={"data_step": self.data_step, "rewinds": self.rewinds}, wait=wait)
        self.saved_at, self.saved_step = time.monotonic(), step

    def _read(self) -> None:
        """Reads the numbers of the newest finished step, if they are still on the device, and logs where an interval ends."""
        if self.unread is None:
            return
        batch, metrics = self.unread
        self.unread = None
        metrics = jax.device_get(metrics)
        self.interval.rejects.update(reject.dataset for reject in batch.rejects)
        if not metrics.verdict.accepted:
            self._note_bad(batch, metrics)
            return
        self.interval.add(metrics)
        step = self.step = int(metrics.step)
        if step % self.config.log_every == 0 or step == self.config.steps:
            record = {"step": step, "data_step": batch.data_step, **self.interval.record(steps_left=self.config.steps - step)}
            record |= self.saving.numbers()
            for hook in self.hooks:
                record |= hook.numbers(batch.data_step)
            self._log(record)

    def _note_bad(self, batch: Batch, metrics: StepMetrics) -> None:
        self.interval.skip()
        bad = bad_step(
            metrics.verdict, step=self.step + 1, data_step=batch.data_step, loss=float(metrics.loss), grad_norm=float(metrics.grad_norm)
        )
        self.bad_steps.add(bad, batch)
        _say(bad.sentence())
        if bad.in_a_row >= self.config.guard.max_in_a_row:
            self.bad = bad

    def _log(self, record: dict[str, Number]) -> None:
        if hosts.is_first():
            for hook in self.hooks:
                record |= hook.derive(record)
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

    With several processes JAX's own SIGTERM handler stays: it is what tells the others, and SIGINT is handed to it. Outside the main
    thread Python allows no handler, and the caller's stay.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    several = hosts.count() > 1

    def handle(number: int, frame: Any) -> None:
        del frame
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    old = {number: signal.signal(number, handle) for number in ((signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT))}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
