"""Reading the checkpoints of a run, in whatever process, beside whoever writes them.

On disk a tree is nested dicts of arrays named by the keys of the state, without layout: any mesh can read what any other wrote. What a
checkpoint leaves to its base (`base`) is read from there, and the result is the same as if it were all in one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from ofa_jax.checkpoint.about import About, from_metadata
from ofa_jax.checkpoint.base import Base, digest_of, find_base, kept, laid_over, left
from ofa_jax.checkpoint.digests import DIGESTS_FILE, find_damage
from ofa_jax.checkpoint.folders import COMMIT_MARKER, MOVE_AWAY, TEMPORARY, damaged, first_line
from ofa_jax.checkpoint.trees import from_parts, like, nested, parts_of, walk
from ofa_jax.config.errors import CheckpointError, DamagedError
from ofa_jax.config.schema import AnyRun, RunConfig
from ofa_jax.parallel import hosts

_ALWAYS_THERE = ("params", "counters")  # parts of every checkpoint, that of imported weights too
_NEVER_ADDED = (*_ALWAYS_THERE, "opt_state")  # parts of every state that was trained: none is filled in


@dataclasses.dataclass(frozen=True)
class RestoredParams:
    """What evaluation needs of a checkpoint."""

    params: Any  # like the given abstract parameters, or nested dicts of arrays when none were given
    stats: Any  # likewise
    step: int
    averaged: bool  # params are the average of the weights


class CheckpointReader:
    """The checkpoints of one run, to be read."""

    def __init__(self, workdir: str | Path, *, base: str = ""):
        """Looks into `<workdir>/checkpoints`; nothing is created, moved or deleted.

        base: where the base of checkpoints that hold only what is trained is looked for first, before the place where it was (a run's
        folder or one checkpoint). `incomplete` names what a killed run left half written, `unmarked` what has lost its marker.
        """
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._base_place = base
        folders = sorted(p.name for p in self.directory.iterdir() if p.is_dir()) if self.directory.is_dir() else []
        self.unmarked = tuple(name for name in folders if name.isdigit() and not (self.directory / name / COMMIT_MARKER).exists())
        self.incomplete = tuple(name for name in folders if TEMPORARY in name)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit() and (p / COMMIT_MARKER).exists())

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        steps = self.steps()
        return steps[-1] if steps else None

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
        return from_metadata(self._said(step), folder=self.directory / str(step))

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
            found = first_line(error)
        return next((text for text in map(bytes.decode, hosts.gather(found.encode())) if text), "")

    def missing_parts(self, abstract_state: Any, *, step: int) -> tuple[str, ...]:
        """Returns the parts of the state that the checkpoint lacks because the program that wrote it did not have them."""
        stored = self._metadata(step).metadata
        parts = kept(parts_of(abstract_state), self.about(step).base)
        return tuple(part for part in parts if part not in stored and part not in _NEVER_ADDED)

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
        wanted; that is not read. Raises `CheckpointError` naming the first parameter whose name, shape or dtype differs, or what is wrong
        with the base, `DamagedError` where the files of the checkpoint itself cannot be read.
        """
        step = self._resolve(step)
        fill, base = dict(fill or {}), self.about(step).base
        wanted = {part: tree for part, tree in parts_of(abstract_state).items() if part not in fill}
        own = kept(wanted, base)
        self._check(step, self._metadata(step).metadata, own, extra=lambda part: part in without or part in spare)
        under = {} if base is None else self._load_base(step, base, wanted)
        loaded = laid_over(under, self._load(step, own, partial=bool(spare)))
        return from_parts(abstract_state, loaded | {part: nested(tree) for part, tree in fill.items()})

    def restore_params(
        self, abstract_params: Any = None, abstract_stats: Any = None, *, step: int | None = None, only_wanted: bool = False
    ) -> RestoredParams:
        """Returns the parameters for use (the average where the run keeps one) and the batch-norm statistics.

        With abstract trees (leaves of shape, dtype, and a sharding or None) the results have their structure and are checked against
        them; without, they are nested dicts of arrays, whole on every device. `only_wanted`: the checkpoint may hold parameters that
        `abstract_params` has not; they are not read.
        """
        step = self._resolve(step)
        own_stored, base = self._metadata(step).metadata, self.about(step).base
        part = "ema" if "ema" in own_stored else "params"
        stored = self._shapes(step) if base is not None and (abstract_params is None or abstract_stats is None) else own_stored
        wanted: dict[str, Any] = {}
        for name, abstract in ((part, abstract_params), ("stats", abstract_stats)):
            if abstract is not None:
                wanted[name] = nested(abstract)
            elif name in stored:
                wanted[name] = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), stored[name])
        wanted = jax.tree.map(_with_sharding, {name: tree for name, tree in wanted.items() if jax.tree.leaves(tree)})
        own = kept(wanted, base)
        if problem := self.damage(step, parts=tuple(own)):
            raise damaged(self.directory / str(step), problem)
        self._check(step, own_stored, own, extra=lambda part: only_wanted or part not in own)
        under = {} if base is None else self._load_base(step, base, wanted)
        loaded = laid_over(under, self._load(step, own, partial=only_wanted))

        def shaped(name: str, abstract: Any) -> Any:
            tree = loaded.get(name, {})
            return tree if abstract is None else like(abstract, tree)

        return RestoredParams(shaped(part, abstract_params), shaped("stats", abstract_stats), step, part == "ema")

    def restore_all(self, step: int | None = None) -> dict[str, Any]:
        """Returns everything that a checkpoint (default: the newest) holds, with what it leaves to its base, as nested dicts by part of
        arrays that are whole on every device. Raises as `restore_params`."""
        step = self._resolve(step)
        if problem := self.damage(step):
            raise damaged(self.directory / str(step), problem)
        wanted, base = jax.tree.map(_with_sharding, self._shapes(step)), self.about(step).base
        under = {} if base is None else self._load_base(step, base, wanted)
        return laid_over(under, self._load(step, kept(wanted, base)))

    def parameter_shapes(self, step: int | None = None) -> dict[tuple[str, ...], tuple[int, ...]]:
        """Returns the shapes of all parameters that a checkpoint (default: the newest) holds or leaves to its base, by path in the model.
        Raises `CheckpointError` where the base is not found."""
        stored = self._shapes(self._resolve(step))
        found = walk(stored["ema" if "ema" in stored else "params"])
        return {tuple(name.split("/")): tuple(leaf.shape) for name, leaf in found.items()}

    def digest(self, step: int | None = None) -> str:
        """Returns the digest that stands for a checkpoint (default: the newest), or an empty text where its format has none."""
        return digest_of(self.directory / str(self._resolve(step)))

    def find_base(self, step: int | None = None) -> Path | None:
        """Returns the folder of the checkpoint that one (default: the newest) lies over, or None where it holds everything. Raises
        `CheckpointError` where it is not found."""
        step = self._resolve(step)
        base = self.about(step).base
        if base is None:
            return None
        manager, at = self._open_base(step, base)
        return manager.directory / str(at)

    def _open_base(self, step: int, base: Base) -> tuple[CheckpointReader, int]:
        """Returns (the checkpoints of the base's run, its step there)."""
        where = f"checkpoint {self.directory / str(step)}"
        folder, at = find_base(base, (self._base_place, base.path, self.about(step).config.init.checkpoint), where=where)
        return CheckpointReader(folder), at

    def _load_base(self, step: int, base: Base, wanted: dict[str, Any]) -> dict[str, Any]:
        """Returns, of the arrays `wanted`, by part, of the checkpoint of `step`, those that it leaves to its base."""
        missing = left(wanted, base)
        manager, at = self._open_base(step, base)
        params = [tree for part, tree in missing.items() if part != "stats"]
        try:
            found = manager.restore_params(params[0] if params else {}, missing.get("stats", {}), step=at, only_wanted=True)
        except DamagedError as error:
            # Not damage of this checkpoint: an older one lies over the same base.
            problem = str(error).removesuffix(MOVE_AWAY)
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} holds only what was trained, over {base}; {problem}; bring that one back from a "
                "copy, in its place or where --config.init.checkpoint=PLACE says"
            ) from error
        # A run has its parameters and their average from the same arrays; one buffer cannot be donated twice.
        copies = iter((found.params, _copied(found.params) if "params" in missing and "ema" in missing else None))
        return {part: found.stats if part == "stats" else next(copies) for part in missing}

    def _shapes(self, step: int) -> dict[str, Any]:
        """Returns the shapes and dtypes of all arrays of a checkpoint by part, those that lie in its base too."""
        stored, base = self._metadata(step).metadata, self.about(step).base
        if base is not None:
            manager, at = self._open_base(step, base)
            there = manager._shapes(at)
            used = there.get("ema", there["params"])
            parts = {part: used for part in ("params", "ema") if part in stored} | {"stats": there.get("stats", {})}
            stored = laid_over(left(parts, base), stored)
        return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), stored)

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
        """Returns what a checkpoint says of itself, as it lies on disk. (Orbax would read the description of every part with it.)"""
        folder = self.directory / str(step)
        try:
            return dict(json.loads((folder / "_CHECKPOINT_METADATA").read_text())["custom_metadata"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(folder, f"its metadata cannot be read: {error}") from error

    def _metadata(self, step: int) -> Any:
        """Returns Orbax's description of a checkpoint: shapes and dtypes by part, and what it says of itself."""
        folder = self.directory / str(step)
        try:
            found = ocp.checkpointables_metadata(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(folder, error) from error
        for part, tree in found.metadata.items():
            if tree is None:  # Orbax logs why it could not read a part, and goes on
                raise damaged(folder / part, "its description cannot be read")
        return found

    def _load(self, step: int, wanted: dict[str, Any], *, partial: bool = False) -> dict[str, Any]:
        if not wanted:
            return {}
        folder = self.directory / str(step)
        context = ocp.Context()
        context.pytree.loading.partial_load = partial
        try:
            with context:
                return ocp.load_checkpointables(folder, wanted)
        except (OSError, ValueError) as error:
            raise damaged(folder, error) from error

    def _check(self, step: int, described: dict[str, Any], wanted: dict[str, Any], *, extra: Callable[[str], bool]) -> None:
        """Compares names, shapes and dtypes, `described` by the checkpoint, before any array is read. `extra`: in which parts it may hold
        more than wanted."""
        stored, expected = walk(described), walk(wanted)
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


def _copied(tree: Any) -> Any:
    """Copies of arrays, placed as they are."""
    return jax.jit(lambda arrays: jax.tree.map(jnp.copy, arrays), out_shardings=jax.tree.map(lambda a: a.sharding, tree))(tree)


def _with_sharding(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns the leaf with a sharding: without one Orbax would take the writer's devices, which may not exist here."""
    if leaf.sharding is not None:
        return leaf
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
