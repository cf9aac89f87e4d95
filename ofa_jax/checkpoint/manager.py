"""Checkpoints of a run: `<workdir>/checkpoints/<step>/`, written by Orbax in the background. Only this module and `reading` import Orbax.

A checkpoint has one folder per part of the state (params, opt_state, stats, ema where it is kept, guard, counters), so that evaluation
reads the parameters alone, what it says of itself (`about`) and the digests of its files (`digests`). One that holds only what is trained
names the checkpoint that has the rest (`base`). Orbax writes below a temporary name, adds the marker `commit_success.txt` and renames: a
temporary name was cut off and is never read, and a folder without the marker lost it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from ofa_jax.checkpoint.about import About, to_metadata, versions
from ofa_jax.checkpoint.base import Base, kept
from ofa_jax.checkpoint.digests import write_digests
from ofa_jax.checkpoint.folders import DAMAGED, TEMPORARY, first_line, move_aside
from ofa_jax.checkpoint.following import Save, Saved
from ofa_jax.checkpoint.reading import CheckpointReader
from ofa_jax.checkpoint.retention import BestOf
from ofa_jax.checkpoint.staging import HostCopy, on_cpu
from ofa_jax.checkpoint.trees import parts_of
from ofa_jax.config.errors import CheckpointError, FailedSaveError, HungSaveError
from ofa_jax.config.schema import AnyRun, CheckpointConfig
from ofa_jax.parallel import hosts

_ASK_EVERY_S = 1.0  # processes that wait for a save ask each other so often how it goes
_UNDER_WAY = "under way"
_MARGIN_S = 60.0  # Orbax gives up so much later than we do, so that it is our sentence that is read


class CheckpointManager(CheckpointReader):
    """Saves and restores the states of one run."""

    def __init__(self, workdir: str | Path, plan: CheckpointConfig | None = None, *, read_only: bool = False, base: str = ""):
        """Opens `<workdir>/checkpoints`.

        plan: what stays, and the deadline of a save; default: what the schema says. An older checkpoint is deleted once a newer one is
        complete. read_only: for evaluation beside a living run; nothing is created, moved or deleted. A writer deletes what a killed run
        left half written (`incomplete` names it), and moves aside what has lost its marker (`unmarked`). base: as `CheckpointReader`
        takes it.
        """
        super().__init__(workdir, base=base)
        self.plan, self.read_only = plan or CheckpointConfig(), read_only
        self._save: Save | None = None
        self._done: list[Saved] = []
        self._failed, self._failure = False, ""  # whether a save of this process has, and the sentence that says how
        self._copy: HostCopy | None = None
        self._scores: dict[int, float | None] = {}
        self._writer: ocp.training.Checkpointer | None = None
        if not read_only:
            if hosts.is_first():
                for name in self.incomplete:
                    shutil.rmtree(self.directory / name)
                for name in self.unmarked:
                    move_aside(self.directory / name)
            self._writer = self._open_writer()

    def _open_writer(self) -> ocp.training.Checkpointer:
        keep: list[Any] = [ocp.training.preservation_policies.LatestN(self.plan.keep)]
        if self.plan.keep_every:
            keep.append(ocp.training.preservation_policies.EveryNSteps(self.plan.keep_every))
        if self.plan.keep_best:
            keep.append(BestOf(self.plan.keep_best, self.plan.lowest_is_best, self._score))
        context = ocp.Context()
        context.asynchronous.timeout_secs = int(self.plan.deadline_s + _MARGIN_S)
        # A function, not a bound method: Orbax copies its options deeply, and this manager with them.
        context.asynchronous.post_finalization_callback = lambda: self._before_commit()
        # Weights do not shrink by compression (random ones to 0.92), which takes the cores that training needs.
        context.array.saving.use_compression = False
        return ocp.training.Checkpointer(
            self.directory,
            context=context,
            preservation_policy=ocp.training.preservation_policies.AnyPreservationPolicy(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
        )

    def _score(self, step: int) -> float | None:
        """The number of a checkpoint that `keep_best` judges by; None where its state was not evaluated."""
        if step not in self._scores:
            self._scores[step] = dict(self._said(step).get("metrics", {})).get(self.plan.best_metric)
        return self._scores[step]

    def _before_commit(self) -> None:
        """Called by Orbax in its thread, in the first process, when all files of a checkpoint are written and before it is committed."""
        assert self._save is not None, "a save that nobody asked for"
        write_digests(self.directory / f"{self._save.step}{TEMPORARY}", self._save.metadata)

    # -- writing

    def prepare(self, state: Any, *, base: Base | None = None) -> None:
        """Takes the memory that saves of such a state over `base` need, so that the first blocks no longer than the others. Needs not be
        called."""
        self._prepare(kept(parts_of(state), base))

    def _prepare(self, parts: dict[str, Any]) -> None:
        if on_cpu(parts) and (self._copy is None or not self._copy.fits(parts)):
            self._copy = HostCopy(parts)

    def save(
        self,
        step: int,
        state: Any,
        *,
        config: AnyRun,
        identity: dict[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        consents: Sequence[dict[str, Any]] = (),
        facts: Mapping[str, Any] | None = None,
        base: Base | None = None,
        wait: bool = False,
    ) -> None:
        """Starts saving `state` as checkpoint `step` and returns once its arrays are copied; `wait` returns when it is on disk.

        identity: facts outside the config that must be the same on resume, as the tokeniser's digest. metrics: of the evaluation of this
        state. consents: what was allowed to change since the run began. facts: what else the run wants to know of it, as JSON holds it.
        base: the checkpoint to which what it names is left. A step that is already saved is not written again. Raises `CheckpointError`
        when an earlier save failed.
        """
        if self._writer is None:
            raise ValueError("this checkpoint manager was opened to read only")
        began = time.monotonic()
        self.wait()
        if step not in self.steps():
            about = About(
                config,
                dict(identity or {}),
                versions=versions(),
                metrics=dict(metrics or {}),
                consents=tuple(consents),
                facts=dict(facts or {}),
                base=base,
            )
            metadata = to_metadata(about)
            self._scores[step] = metadata["metrics"].get(self.plan.best_metric)
            self._save = Save(step, metadata, began)
            parts, writer = kept(parts_of(state), base), self._writer
            if not wait:
                self._prepare(parts)
            usable = self._copy is not None and self._copy.fits(parts)
            parts = self._copy.take(parts) if usable else parts

            def begin() -> Any:
                return writer.save_checkpointables_async(step, parts, force=True, custom_metadata=metadata)

            if usable and hosts.count() == 1:
                self._save.follow(begin)  # the state is copied; with several processes Orbax must be called in the same order by all
            else:
                try:
                    response = begin()
                except (OSError, ValueError) as error:
                    self._failed = True
                    raise FailedSaveError(self._not_written(self._save, error)) from error  # the others may wait in Orbax for this process
                self._save.follow(lambda: response)
            self._save.blocked_s = time.monotonic() - began
        if wait:
            self.wait()

    def check(self) -> None:
        """Returns at once. Raises `FailedSaveError` with the cause when the save under way has failed, `HungSaveError` when it is not done
        by its deadline; where there are other processes, this one's failure alone."""
        if self._save is not None:
            self._settle(0.0)

    def wait(self) -> None:
        """Returns when no save is under way. Raises what `check` does. All processes must call it, also one whose save has failed: where
        one of them has, all raise `FailedSaveError`, as the threads of the others wait for it."""
        if hosts.count() > 1:
            self._wait_together()
        elif self._save is not None:
            self._settle(self._left_s())

    def _left_s(self) -> float:
        return 0.0 if self._save is None else self._save.began + self.plan.deadline_s - time.monotonic()

    def _wait_together(self) -> None:
        while True:
            said = self._failure
            if not said and self._save is not None:
                try:
                    self._settle(min(_ASK_EVERY_S, self._left_s()))
                except CheckpointError as error:
                    said = str(error)
            own = said or ("" if self._save is None else _UNDER_WAY)
            words = [word.decode() for word in hosts.gather(own.encode())]
            failed = {host: word for host, word in enumerate(words) if word and word != _UNDER_WAY}
            if failed:
                self._failed = True
                if hosts.is_first():
                    time.sleep(_ASK_EVERY_S)  # JAX ends the others, in words of its own, when the first is gone
                host, sentence = min(failed.items())
                raise FailedSaveError(f"on host {host} of {len(words)}: {sentence}")
            if not any(words):
                return

    def _settle(self, timeout_s: float) -> None:
        save = self._save
        assert save is not None
        save.join(timeout_s)
        took = time.monotonic() - save.began
        folder = self.directory / str(save.step)
        error = save.failing() if save.ended is None and hosts.count() > 1 else None
        if save.ended is None and error is None:
            if took < self.plan.deadline_s:
                return
            self._failed = True
            self._failure = (
                f"{folder}: the save of step {save.step} is not done after {took:.0f} s, expected at most checkpoint.deadline_s="
                f"{self.plan.deadline_s:g}; look at the disk (df, dmesg), at network file systems, and at whether all "
                "processes run; the same command goes on from the checkpoint before"
            )
            raise HungSaveError(self._failure)
        self._save, error = None, error or save.error
        if error is not None:
            self._failed = True
            self._failure = self._not_written(save, error)
            raise FailedSaveError(self._failure) from error
        assert save.ended is not None
        self._done.append(Saved(save.step, save.blocked_s, save.ended - save.began))

    def _not_written(self, save: Save, error: BaseException) -> str:
        return f"{self.directory / str(save.step)}: the checkpoint of step {save.step} could not be written: {first_line(error)}"

    def done(self) -> list[Saved]:
        """Returns the saves that were found done by `check` or `wait` since this was asked last."""
        found, self._done = self._done, []
        return found

    def delete(self, step: int) -> None:
        """Deletes a checkpoint, of a way that the run gave up; all processes must call it."""
        if self._writer is None:
            raise ValueError("this checkpoint manager was opened to read only")
        self.wait()
        self._writer.delete(step)

    def close(self) -> None:
        """Waits for the save under way and ends Orbax's threads. After a save that failed or hangs there is nothing to wait for."""
        if self._failed:
            return
        try:
            if self._save is not None:  # of this process alone: it may be here because of an error that the others do not have
                self._settle(self._left_s())
        finally:
            if self._writer is not None and not self._failed:
                self._writer.close()

    def move_aside(self, step: int) -> Path:
        """Renames the folder of a damaged checkpoint to `<step>.damaged`; it is never deleted. All processes must call it. Returns the
        new path."""
        folder = self.directory / str(step)
        new = str(move_aside(folder)) if hosts.is_first() else ""
        new = hosts.gather(new.encode())[0].decode()
        if self._writer is not None:
            self._writer.reload()
        return Path(new)

    def moved_aside(self) -> list[str]:
        """Returns the names of folders that were moved aside as damaged, now or earlier."""
        return sorted(p.name for p in self.directory.glob(f"*{DAMAGED}*")) if self.directory.is_dir() else []
