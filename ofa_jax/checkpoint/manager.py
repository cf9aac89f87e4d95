"""Checkpoints of a run: `<workdir>/checkpoints/<step>/`, written by Orbax in the background. The only module that imports Orbax.

A checkpoint has one folder per part of the state (params, opt_state, stats, ema where it is kept, guard, counters), so that evaluation
reads the parameters alone, and the run's resolved config as JSON. Orbax writes below a temporary name, adds the marker `commit_success.txt`
and renames; a folder without the marker was cut off and is never read. On disk a tree is nested dicts of arrays named by the keys of
the state, without layout: any mesh can read what any other wrote.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.render import from_json, to_json
from ofa_jax.config.schema import AnyRun, RunConfig
from ofa_jax.parallel.rules import key_path_parts

COMMIT_MARKER = "commit_success.txt"
COUNTERS = ("step", "data_step")


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

    def __init__(self, workdir: str | Path, *, keep: int = 3, read_only: bool = False):
        """Opens `<workdir>/checkpoints`.

        keep: how many checkpoints stay; older ones are deleted once a newer one is complete. read_only: for evaluation beside a
        living run; nothing is created or deleted. A writer deletes what a killed run left half written; `incomplete` names what was
        found.
        """
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.read_only = read_only
        self.incomplete: tuple[str, ...] = self._find_incomplete()
        self._pending: Any = None
        self._writer: ocp.training.Checkpointer | None = None
        if not read_only:
            if jax.process_index() == 0:
                for name in self.incomplete:
                    shutil.rmtree(self.directory / name)
            self._writer = ocp.training.Checkpointer(
                self.directory,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                cleanup_tmp_directories=True,
            )

    def _find_incomplete(self) -> tuple[str, ...]:
        if not self.directory.is_dir():
            return ()
        folders = (p for p in self.directory.iterdir() if p.is_dir())
        return tuple(sorted(p.name for p in folders if not (p.name.isdigit() and (p / COMMIT_MARKER).exists())))

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

    def save(
        self,
        step: int,
        state: Any,
        *,
        config: AnyRun,
        identity: dict[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
        wait: bool = False,
    ) -> None:
        """Starts saving `state` as checkpoint `step` and returns once its arrays are copied; `wait` returns when it is on disk.

        identity: facts outside the config that must be the same on resume, as the tokeniser's digest. A step that is already saved
        is not written again. facts: what else the run wants to know of it, as JSON holds it. Raises what an earlier background save raised.
        """
        if self._writer is None:
            raise ValueError("this checkpoint manager was opened to read only")
        self.wait()
        if step not in self.steps():
            known = {"config": to_json(config), "identity": dict(identity or {}), "facts": dict(facts or {})}
            self._pending = self._writer.save_checkpointables_async(step, _parts_of(state), force=True, custom_metadata=known)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when no save is under way. Raises `CheckpointError` when the last one failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except OSError as error:
            raise CheckpointError(f"{self.directory}: the checkpoint could not be written: {error}") from error

    def delete(self, step: int) -> None:
        """Deletes a checkpoint, of a way that the run gave up; all processes must call it."""
        if self._writer is None:
            raise ValueError("this checkpoint manager was opened to read only")
        self.wait()
        self._writer.delete(step)

    def close(self) -> None:
        """Waits for the save under way and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
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
        return from_json(self._metadata(self._resolve(step)).custom_metadata["config"])

    def identity(self, step: int | None = None) -> dict[str, str]:
        """Returns the facts outside the config that were saved with the checkpoint."""
        return dict(self._metadata(self._resolve(step)).custom_metadata["identity"])

    def facts(self, step: int | None = None) -> dict[str, Any]:
        """Returns the `facts` that were saved with the checkpoint; none with an older one."""
        return dict(self._metadata(self._resolve(step)).custom_metadata.get("facts", {}))

    def parts(self, step: int | None = None) -> set[str]:
        """Returns the names of the parts of the state that the checkpoint holds; an older one may lack a part that came later."""
        return set(self._metadata(self._resolve(step)).metadata)

    def restore(self, abstract_state: Any, *, step: int | None = None, spare: str = "") -> Any:
        """Returns the saved state (default: the newest) with the structure, dtypes and shardings of `abstract_state`.

        abstract_state: leaves are `jax.ShapeDtypeStruct` with shardings. spare: a part of which the checkpoint may hold more than is
        wanted; that is not read. Raises `CheckpointError` naming the first parameter whose name, shape or dtype differs.
        """
        step = self._resolve(step)
        wanted = _parts_of(abstract_state)
        self._check(step, wanted, spare=spare)
        loaded = self._load(step, wanted, partial=bool(spare))
        leaves = []
        for part, names, _ in _named_leaves(abstract_state):
            node = loaded[part]
            for name in names:
                node = node[name]
            leaves.append(node)
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(abstract_state), leaves)

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
                wanted[name] = _nested(abstract)
            elif name in stored:
                wanted[name] = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), stored[name])
        wanted = jax.tree.map(_with_sharding, {name: tree for name, tree in wanted.items() if jax.tree.leaves(tree)})
        self._check(step, wanted, extra="anywhere" if only_wanted else "other parts")
        loaded = self._load(step, wanted, partial=only_wanted)

        def shaped(name: str, abstract: Any) -> Any:
            tree = loaded.get(name, {})
            return tree if abstract is None else _like(abstract, tree)

        return RestoredParams(shaped(part, abstract_params), shaped("stats", abstract_stats), step, part == "ema")

    def _resolve(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            left = f" (only cut-off ones: {', '.join(self.incomplete)})" if self.incomplete else ""
            raise CheckpointError(f"{self.directory}: found no complete checkpoint{left}, expected one")
        if step is None:
            return steps[-1]
        if step not in steps:
            raise CheckpointError(f"{self.directory}: found no checkpoint of step {step}, expected one of {', '.join(map(str, steps))}")
        return step

    def _metadata(self, step: int) -> Any:
        """Returns Orbax's description of a checkpoint: shapes and dtypes by part, and our config and identity."""
        folder = self.directory / str(step)
        try:
            found = ocp.checkpointables_metadata(folder)
        except (OSError, ValueError) as error:
            raise _damaged(folder, error) from error
        for part, tree in found.metadata.items():
            if tree is None:  # Orbax logs why it could not read a part, and goes on
                raise _damaged(folder / part, "its description cannot be read")
        if not isinstance(found.custom_metadata, dict) or not {"config", "identity"} <= set(found.custom_metadata):
            raise CheckpointError(f"{folder}: found no config in the checkpoint, expected one written by this program")
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

    def _check(
        self, step: int, wanted: dict[str, Any], *, extra: Literal["none", "other parts", "anywhere"] = "none", spare: str = ""
    ) -> None:
        """Compares names, shapes and dtypes before any array is read. extra, spare: where the checkpoint may hold more than is wanted."""
        stored = {_join(part, names): leaf for part, names, leaf in _walk(self._metadata(step).metadata)}
        expected = {_join(part, names): leaf for part, names, leaf in _walk(wanted)}
        where = f"checkpoint {self.directory / str(step)}"
        for name, leaf in expected.items():
            if name not in stored:
                raise CheckpointError(f"{where}: found no {name}, expected shape {tuple(leaf.shape)}")
            if tuple(stored[name].shape) != tuple(leaf.shape):
                raise CheckpointError(f"{where}, {name}: found shape {tuple(stored[name].shape)}, expected {tuple(leaf.shape)}")
            if np.dtype(stored[name].dtype) != np.dtype(leaf.dtype):
                raise CheckpointError(f"{where}, {name}: found dtype {stored[name].dtype}, expected {leaf.dtype}")
        parts = set(wanted)
        for name in stored:
            if spare and name.split("/")[0] == spare:
                continue
            if name not in expected and (extra == "none" or (extra == "other parts" and name.split("/")[0] in parts)):
                raise CheckpointError(f"{where}: found {name}, which this run's config does not have")


def _damaged(folder: Path, reason: Exception | str) -> CheckpointError:
    first = (str(reason).strip().splitlines() or [type(reason).__name__])[0][:300]
    return CheckpointError(f"{folder}: the checkpoint is damaged ({first}); move it away to use an older one")


def _with_sharding(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns the leaf with a sharding: without one Orbax would take the writer's devices, which may not exist here."""
    if leaf.sharding is not None:
        return leaf
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def _named_leaves(state: Any) -> list[tuple[str, tuple[str, ...], Any]]:
    """Returns (part, names below it, leaf) of every leaf in the order of the tree; step and data_step form the part `counters`."""
    out = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        names = key_path_parts(path)
        out.append(("counters", names, leaf) if names[0] in COUNTERS else (names[0], names[1:], leaf))
    return out


def _parts_of(state: Any) -> dict[str, Any]:
    """Returns the state as nested dicts by part; parts without arrays are left out."""
    parts: dict[str, Any] = {}
    for part, names, leaf in _named_leaves(state):
        _put(parts.setdefault(part, {}), names, leaf)
    return parts


def _nested(tree: Any) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        _put(nested, key_path_parts(path), leaf)
    return nested


def _like(abstract: Any, nested: dict[str, Any]) -> Any:
    flat, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    leaves = []
    for path, _ in flat:
        node: Any = nested
        for name in key_path_parts(path):
            node = node[name]
        leaves.append(node)
    return jax.tree_util.tree_unflatten(treedef, leaves)


def _put(node: dict[str, Any], names: tuple[str, ...], leaf: Any) -> None:
    for name in names[:-1]:
        node = node.setdefault(name, {})
    node[names[-1]] = leaf


def _walk(parts: dict[str, Any]) -> list[tuple[str, tuple[str, ...], Any]]:
    """Returns (part, names, leaf) of nested dicts; leaves are whatever is no dict."""
    out: list[tuple[str, tuple[str, ...], Any]] = []

    def visit(part: str, names: tuple[str, ...], node: Any) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                visit(part, (*names, str(name)), child)
        else:
            out.append((part, names, node))

    for part, tree in parts.items():
        visit(part, (), tree)
    return out


def _join(part: str, names: tuple[str, ...]) -> str:
    return "/".join((part, *names))
