"""Checkpoints of a run: `<workdir>/checkpoints/<step>/`, written by Orbax in the background. The only module that imports Orbax.

A checkpoint has one folder per part of the state (params, opt_state, stats, ema where it is kept, guard, counters), so that evaluation
reads the parameters alone, what it says of itself (`about`) and the digests of its files (`digests`). Orbax writes below a temporary name,
adds the marker `commit_success.txt` and renames: a temporary name was cut off and is never read, and a folder without the marker lost it.
On disk a tree is nested dicts of arrays named by the keys of the state, without layout: any mesh can read what any other wrote.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from ofa_jax.checkpoint.about import About, from_metadata, to_metadata, versions
from ofa_jax.checkpoint.digests import DIGESTS_FILE, find_damage, write_digests
from ofa_jax.checkpoint.following import Save, Saved
from ofa_jax.checkpoint.retention import BestOf
from ofa_jax.checkpoint.staging import HostCopy, on_cpu
from ofa_jax.checkpoint.trees import from_parts, like, nested, parts_of, walk
from ofa_jax.config.errors import CheckpointError, DamagedError, FailedSaveError, HungSaveError
from ofa_jax.config.schema import AnyRun, CheckpointConfig, RunConfig
from ofa_jax.parallel import hosts

COMMIT_MARKER = "commit_success.txt"
DAMAGED = ".damaged"  # behind the name of a folder that was moved aside
_TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax's, behind the name of a folder that is being written
_ALWAYS_THERE = ("params", "counters")  # parts of every checkpoint, that of imported weights too
_NEVER_ADDED = (*_ALWAYS_THERE, "opt_state")  # parts of every state that was trained: none is filled in
_ASK_EVERY_S = 1.0  # processes that wait for a save ask each other so often how it goes
_UNDER_WAY = "under way"
_MARGIN_S = 60.0  # Orbax gives up so much later than we do, so that it is our sentence that is read


@dataclasses.dataclass(frozen=True)
class RestoredParams:
    """What evaluation needs of a checkpoint."""

    params: Any  # like the given abstract parameters, or nested dicts of arrays when none were given
    stats: Any  # likewise
    step: int
    averaged: bool  # params are the average of the weights


def find_run(path: str | Path) -> tuple[Path, int | None]:
    """Returns (a run's folder, the step or None) for the path of a run, of its `checkpoints` folder or of one checkpoint."""
    path = Path(path)
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return path.parent.parent, int(path.name)
    return (path.parent if path.name == "checkpoints" else path), None


class CheckpointManager:
    """Saves and restores the states of one run."""

    def __init__(self, workdir: str | Path, plan: CheckpointConfig | None = None, *, read_only: bool = False):
        """Opens `<workdir>/checkpoints`.

        plan: what stays, and the deadline of a save; default: what the schema says. An older checkpoint is deleted once a newer one is
        complete. read_only: for evaluation beside a living run; nothing is created, moved or deleted. A writer deletes what a killed run
        left half written (`incomplete` names it), and moves aside what has lost its marker (`unmarked`).
        """
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.plan = plan or CheckpointConfig()
        self.read_only = read_only
        folders = sorted(p.name for p in self.directory.iterdir() if p.is_dir()) if self.directory.is_dir() else []
        self.unmarked = tuple(name for name in folders if name.isdigit() and not (self.directory / name / COMMIT_MARKER).exists())
        self.incomplete = tuple(name for name in folders if _TEMPORARY in name)
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
                    _move_aside(self.directory / name)
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
        write_digests(self.directory / f"{self._save.step}{_TEMPORARY}", self._save.metadata)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit() and (p / COMMIT_MARKER).exists())

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        steps = self.steps()
        return steps[-1] if steps else None

    # -- writing

    def prepare(self, state: Any) -> None:
        """Takes the memory that saves of such a state need, so that the first blocks no longer than the others. Needs not be called."""
        if on_cpu(state) and (self._copy is None or not self._copy.fits(state)):
            self._copy = HostCopy(state)

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
        wait: bool = False,
    ) -> None:
        """Starts saving `state` as checkpoint `step` and returns once its arrays are copied; `wait` returns when it is on disk.

        identity: facts outside the config that must be the same on resume, as the tokeniser's digest. metrics: of the evaluation of this
        state. consents: what was allowed to change since the run began. facts: what else the run wants to know of it, as JSON holds it. A
        step that is already saved is not written again. Raises `CheckpointError` when an earlier save failed.
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
            )
            metadata = to_metadata(about)
            self._scores[step] = metadata["metrics"].get(self.plan.best_metric)
            self._save = Save(step, metadata, began)
            if not wait:
                self.prepare(state)
            usable = self._copy is not None and self._copy.fits(state)
            copied = self._copy.take(state) if usable else state
            parts, writer = parts_of(copied), self._writer

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
        return f"{self.directory / str(save.step)}: the checkpoint of step {save.step} could not be written: {_first_line(error)}"

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

    # -- reading

    def config(self, step: int | None = None) -> RunConfig:
        """Returns the resolved config of the run of OFA that wrote the checkpoint (default: the newest). Raises `CheckpointError`
        when it is the run of another model."""
        config = self.run_config(step)
        if not isinstance(config, RunConfig):
            raise CheckpointError(f"{self.directory}: found a {config.objective}, expected an OFA model")
        return config

    def run_config(self, step: int | None = None) -> AnyRun:
        """Returns the resolved config of the run that wrote the checkpoint (default: the newest), whatever model it trains."""
        return self.about(step).config

    def identity(self, step: int | None = None) -> dict[str, str]:
        """Returns the facts outside the config that were saved with the checkpoint."""
        return self.about(step).identity

    def about(self, step: int | None = None) -> About:
        """Returns what the checkpoint (default: the newest) says of itself."""
        step = self._resolve(step)
        return from_metadata(self._metadata(step).custom_metadata, folder=self.directory / str(step))

    def facts(self, step: int | None = None) -> dict[str, Any]:
        """Returns the `facts` that were saved with the checkpoint; none with an older one."""
        return dict(self.about(step).facts)

    def damage(self, step: int, *, parts: Collection[str] | None = None) -> str:
        """Returns what is wrong with a complete checkpoint, in a few words, or an empty text. It reads all its files, or those of `parts`.

        Several processes share the files, and all must call it: they return the same. Checkpoints of format 1 have no digests; of those
        only the description is read, and other damage is found by `restore`.
        """
        found = ""
        folder = self.directory / str(step)
        try:
            # Read without Orbax: a flipped bit in its metadata must not decide what is looked at.
            said = self._said(step)
            if said.get("format", 1) != 1 or (folder / DIGESTS_FILE).exists():
                found = find_damage(folder, said, parts=parts, share=(hosts.index(), hosts.count()))
            elif not set(_ALWAYS_THERE) <= set(stored := self._metadata(step).metadata):
                found = f"found the parts {', '.join(sorted(stored))}, expected {', '.join(_ALWAYS_THERE)} among them"
        except DamagedError as error:
            found = _first_line(error)
        return next((text for text in map(bytes.decode, hosts.gather(found.encode())) if text), "")

    def move_aside(self, step: int) -> Path:
        """Renames the folder of a damaged checkpoint to `<step>.damaged`; it is never deleted. All processes must call it. Returns the
        new path."""
        folder = self.directory / str(step)
        new = str(_move_aside(folder)) if hosts.is_first() else ""
        new = hosts.gather(new.encode())[0].decode()
        if self._writer is not None:
            self._writer.reload()
        return Path(new)

    def moved_aside(self) -> list[str]:
        """Returns the names of folders that were moved aside as damaged, now or earlier."""
        return sorted(p.name for p in self.directory.glob(f"*{DAMAGED}*")) if self.directory.is_dir() else []

    def missing_parts(self, abstract_state: Any, *, step: int) -> tuple[str, ...]:
        """Returns the parts of the state that the checkpoint lacks because the program that wrote it did not have them."""
        stored = self._metadata(step).metadata
        return tuple(part for part in parts_of(abstract_state) if part not in stored and part not in _NEVER_ADDED)

    def restore(
        self,
        abstract_state: Any,
        *,
        step: int | None = None,
        fill: Mapping[str, Any] | None = None,
        without: Collection[str] = (),
        spare: Collection[str] = (),
    ) -> Any:
        """Returns the saved state (default: the newest) with the structure, dtypes and shardings of `abstract_state`.

        abstract_state: leaves are `jax.ShapeDtypeStruct` with shardings. fill: values of parts that the checkpoint lacks (`missing_parts`),
        by name. without: parts of the checkpoint that the state has no more. spare: parts of which the checkpoint may hold more than is
        wanted; that is not read. Raises `CheckpointError` naming the first parameter whose
        name, shape or dtype differs, `DamagedError` where the files cannot be read.
        """
        step = self._resolve(step)
        fill = dict(fill or {})
        wanted = {part: tree for part, tree in parts_of(abstract_state).items() if part not in fill}
        self._check(step, wanted, extra=lambda part: part in without or part in spare)
        loaded = self._load(step, wanted, partial=bool(spare)) | {part: nested(tree) for part, tree in fill.items()}
        return from_parts(abstract_state, loaded)

    def restore_params(
        self, abstract_params: Any = None, abstract_stats: Any = None, *, step: int | None = None, only_wanted: bool = False
    ) -> RestoredParams:
        """Returns the parameters for use (the average where the run keeps one) and the batch-norm statistics.

        With abstract trees (leaves of shape, dtype, and a sharding or None) the results have their structure and are checked against
        them; without, they are nested dicts of arrays, whole on every device. `only_wanted`: the checkpoint may hold parameters that
        `abstract_params` has not; they are not read.
        """
        step = self._resolve(step)
        stored = self._metadata(step).metadata
        part = "ema" if "ema" in stored else "params"
        wanted: dict[str, Any] = {}
        for name, abstract in ((part, abstract_params), ("stats", abstract_stats)):
            if abstract is not None:
                wanted[name] = nested(abstract)
            elif name in stored:
                wanted[name] = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), stored[name])
        wanted = jax.tree.map(_with_sharding, {name: tree for name, tree in wanted.items() if jax.tree.leaves(tree)})
        if problem := self.damage(step, parts=tuple(wanted)):
            raise _damaged(self.directory / str(step), problem)
        self._check(step, wanted, extra=lambda part: only_wanted or part not in wanted)
        loaded = self._load(step, wanted, partial=only_wanted)

        def shaped(name: str, abstract: Any) -> Any:
            tree = loaded.get(name, {})
            return tree if abstract is None else like(abstract, tree)

        return RestoredParams(shaped(part, abstract_params), shaped("stats", abstract_stats), step, part == "ema")

    def parameter_paths(self, step: int | None = None) -> set[tuple[str, ...]]:
        """Returns the paths in the model of all parameters that a checkpoint (default: the newest) holds."""
        stored = self._metadata(self._resolve(step)).metadata
        return {tuple(name.split("/")) for name in walk(stored["ema" if "ema" in stored else "params"])}

    def _resolve(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            others = (*self.incomplete, *self.unmarked)
            left = f" (only cut-off ones: {', '.join(others)})" if others else ""
            raise CheckpointError(f"{self.directory}: found no complete checkpoint{left}, expected one")
        if step is None:
            return steps[-1]
        if step not in steps:
            raise CheckpointError(f"{self.directory}: found no checkpoint of step {step}, expected one of {', '.join(map(str, steps))}")
        return step

    def _said(self, step: int) -> dict[str, Any]:
        """Returns what a checkpoint says of itself, as it lies on disk."""
        folder = self.directory / str(step)
        try:
            return dict(json.loads((folder / "_CHECKPOINT_METADATA").read_text())["custom_metadata"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, f"its metadata cannot be read: {error}") from error

    def _metadata(self, step: int) -> Any:
        """Returns Orbax's description of a checkpoint: shapes and dtypes by part, and what it says of itself."""
        folder = self.directory / str(step)
        try:
            found = ocp.checkpointables_metadata(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, error) from error
        for part, tree in found.metadata.items():
            if tree is None:  # Orbax logs why it could not read a part, and goes on
                raise _damaged(folder / part, "its description cannot be read")
        return found

    def _load(self, step: int, wanted: dict[str, Any], *, partial: bool = False) -> dict[str, Any]:
        folder = self.directory / str(step)
        context = ocp.Context()
        context.pytree.loading.partial_load = partial
        try:
            with context:
                return ocp.load_checkpointables(folder, wanted)
        except (OSError, ValueError) as error:
            raise _damaged(folder, error) from error

    def _check(self, step: int, wanted: dict[str, Any], *, extra: Callable[[str], bool]) -> None:
        """Compares names, shapes and dtypes before any array is read. `extra`: in which parts the checkpoint may hold more than wanted."""
        stored, expected = walk(self._metadata(step).metadata), walk(wanted)
        where = f"checkpoint {self.directory / str(step)}"
        for name, leaf in expected.items():
            if name not in stored:
                raise CheckpointError(f"{where}: found no {name}, expected shape {tuple(leaf.shape)}")
            if tuple(stored[name].shape) != tuple(leaf.shape):
                raise CheckpointError(f"{where}, {name}: found shape {tuple(stored[name].shape)}, expected {tuple(leaf.shape)}")
            if np.dtype(stored[name].dtype) != np.dtype(leaf.dtype):
                raise CheckpointError(f"{where}, {name}: found dtype {stored[name].dtype}, expected {leaf.dtype}")
        for name in stored:
            if name not in expected and not extra(name.split("/")[0]):
                raise CheckpointError(f"{where}: found {name}, which this run's config does not have")


def _damaged(folder: Path, reason: BaseException | str) -> DamagedError:
    return DamagedError(f"{folder}: the checkpoint is damaged ({_first_line(reason)}); move it away to use an older one")


def _first_line(reason: BaseException | str) -> str:
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0][:300]


def _move_aside(folder: Path) -> Path:
    """Renames a checkpoint's folder so that nothing reads it as one, and returns its new path."""
    names = [f"{folder.name}{DAMAGED}", *(f"{folder.name}{DAMAGED}-{i}" for i in range(1, 100))]
    new = next(path for name in names if not (path := folder.with_name(name)).exists())
    return folder.rename(new)


def _with_sharding(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns the leaf with a sharding: without one Orbax would take the writer's devices, which may not exist here."""
    if leaf.sharding is not None:
        return leaf
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
