"""What the checkpoints of a run that saves only what is trained (`checkpoint.content`) leave to the checkpoint that it began from.

Left is what both stays as it is, by the config, and was taken from there. Everything else is saved: what learns, what was drawn and never
learns, statistics that change. So a run that goes on has every array as it was, to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ofa_jax.checkpoint.base import Base, find_base
from ofa_jax.checkpoint.reading import CheckpointReader
from ofa_jax.checkpoint.trees import from_paths
from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.parameters import stays
from ofa_jax.config.schema import AnyRun
from ofa_jax.parallel.rules import key_path_parts
from ofa_jax.train.initial import described, find_source, taken_leaves
from ofa_jax.train.state import TrainState

WRITE_WHOLE = "python launch/convert.py whole {} --out=runs/NAME writes a whole one"


def new_base(config: AnyRun, state: TrainState) -> Base | None:
    """Returns what a new run with the (abstract) `state` leaves to `init.checkpoint`, or None where it saves everything.

    Raises `CheckpointError` where that checkpoint cannot be a base (there is none, it lies over another one itself, it has no digests), or
    where nothing of it stays as it is.
    """
    if config.checkpoint.content == "all":
        return None
    source, step = find_source(config)
    where = f"init.checkpoint: found {source.directory / str(step)}"
    if source.about(step).base is not None:
        advice = WRITE_WHOLE.format(source.directory / str(step))
        raise CheckpointError(f"{where}, which holds only what was trained, expected a whole one for checkpoint.content=trained; {advice}")
    digest = source.digest(step)
    if not digest:
        advice = WRITE_WHOLE.format(source.directory / str(step))
        raise CheckpointError(f"{where}, of a format without digests, expected one with them for checkpoint.content=trained; {advice}")
    names = tuple(sorted("/".join(path) for path in taken_leaves(config, state.params, source, step)[0] if stays(path, config.optimizer)))
    if not names:
        raise CheckpointError(f"{where}, none of whose parameters stays as it is in this run, expected some, or checkpoint.content=all")
    return Base(str(source.directory.parent), step, digest, names, _stats_stay(config, state))


def base_of_resumed(config: AnyRun, stored: Base | None, state: TrainState, *, where: str, say: Callable[[str], None]) -> Base | None:
    """Returns what a run that goes on with `state`, from the checkpoint `where`, leaves to `init.checkpoint`, or None where it saves all.

    stored: what that checkpoint had left. Only what it had left there, or what is found to be the same there, is left again: a parameter
    that learned and is frozen now is not. Raises `CheckpointError` where `init.checkpoint` is not the base, or none that it can have.
    """
    if config.checkpoint.content == "all":
        return None
    if stored is not None:
        folder, step = find_base(stored, (config.init.checkpoint,), where=where)
        names = tuple(name for name in stored.params if stays(name.split("/"), config.optimizer))
        return Base(str(folder), step, stored.digest, names, stored.stats and _stats_stay(config, state))
    base = new_base(config, state)
    assert base is not None
    found = _same_as(base, state)
    if not found.params:
        raise CheckpointError(
            f"checkpoint.content: found trained, but no frozen parameter of {where} is as in {base}, expected the checkpoint that the run "
            "began from as init.checkpoint, or checkpoint.content=all"
        )
    if others := len(base.params) - len(found.params):
        say(f"{others} of {len(base.params)} arrays that stay as they are differ from {base}: they are saved too")
    return found


def _stats_stay(config: AnyRun, state: TrainState) -> bool:
    """Whether the running statistics are those of `init.checkpoint` for ever."""
    taken = "resnet" in (config.init.parts or tuple(state.params))
    return taken and getattr(config.model, "image_norm", "") == "frozen"


def _same_as(base: Base, state: TrainState) -> Base:
    """Returns `base` without what differs there from `state`."""
    leaves = {"/".join(key_path_parts(path)): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]}
    averages = {} if state.ema is None else dict(zip(leaves, jax.tree.leaves(state.ema), strict=True))
    mine = {name: leaves[name] for name in base.params}
    wanted = described(from_paths({tuple(name.split("/")): leaf for name, leaf in mine.items()}))
    stats = state.stats if base.stats else {}
    reader = CheckpointReader(base.path)
    there = reader.restore_params(wanted, described(stats), step=base.step, only_wanted=True)
    found = {"/".join(key_path_parts(path)): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(there.params)[0]}
    same = jax.jit(lambda a, b: jax.tree.map(lambda x, y: jnp.all(x == y) & jnp.all(jnp.signbit(x) == jnp.signbit(y)), a, b))
    equal: Any = jax.device_get(same(mine, found))
    if averages:
        also = jax.device_get(same({name: averages[name] for name in mine}, found))
        equal = {name: equal[name] and also[name] for name in mine}
    of_stats = jax.device_get(same(stats, there.stats)) if base.stats else {}
    kept = tuple(name for name in base.params if equal[name])
    return dataclasses.replace(base, params=kept, stats=base.stats and all(jax.tree.leaves(of_stats)))
