"""The first parameters of a run that goes on from another one: a second stage, or parts that were trained elsewhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ofa_jax.checkpoint.folders import find_run
from ofa_jax.checkpoint.reading import CheckpointReader
from ofa_jax.checkpoint.trees import from_paths
from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.schema import AnyRun
from ofa_jax.parallel.rules import key_path_parts
from ofa_jax.train.state import TrainState

ADDED = ("adapter", "prompt", "lora")  # modules that light fine-tuning adds to a model


Leaves = dict[tuple[str, ...], Any]  # by path in the model


def find_source(config: AnyRun) -> tuple[CheckpointReader, int]:
    """Returns (the run that `init.checkpoint` names, the step that it names or the newest). Raises `CheckpointError` without one."""
    folder, step = find_run(config.init.checkpoint)
    source = CheckpointReader(folder)
    steps = source.steps()
    if not steps:
        raise CheckpointError(
            f"init.checkpoint: found no complete checkpoint in {source.directory}, expected one; train that run first, "
            "or give --config.init.checkpoint= to start from drawn parameters"
        )
    return source, steps[-1] if step is None else step


def taken_leaves(config: AnyRun, params: Any, source: CheckpointReader, step: int) -> tuple[Leaves, Leaves]:
    """Returns the leaves of `params` (a new run's, or their shapes) that are taken from step `step` of `source`, and those of modules that
    light fine-tuning adds (`ADDED`) which it has not, and which stay as they were drawn.

    A leaf that it lacks otherwise is among the first: reading it is an error.
    """
    parts = config.init.parts or tuple(params)
    there = source.parameter_shapes(step)
    leaves = {key_path_parts(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    lacking = {path: leaf for path, leaf in leaves.items() if path[0] in parts and path not in there and set(path) & set(ADDED)}
    return {path: leaf for path, leaf in leaves.items() if path[0] in parts and path not in lacking}, lacking


def take_parameters(config: AnyRun, state: TrainState, *, step: int | None = None) -> tuple[TrainState, str]:
    """Returns `state` with the parts that `config.init` names from a checkpoint there, and a sentence that says what was taken.

    step: of that checkpoint; default: the newest, or the one that `init.checkpoint` names. The average of the weights is taken where that
    run kept one; running batch-norm statistics come with the ResNet. Optimizer, step and data order stay those of a new run. What light
    fine-tuning puts into a model (`ADDED`) stays as it was drawn where that run has none; what that run has beside the model of this one
    (as the image front, where this one reads no pictures) is left there, and the sentence says so. Raises `CheckpointError` when there is
    no complete checkpoint or a part does not fit.
    """
    parts = config.init.parts or tuple(state.params)
    source, newest = find_source(config)
    step = newest if step is None else step
    leaves, lacking = taken_leaves(config, state.params, source, step)
    stats = state.stats if "resnet" in parts else {}
    wanted = described(from_paths(leaves))
    taken = source.restore_params(wanted, described(stats), step=step, only_wanted=True)
    new = {key_path_parts(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(taken.params)[0]}

    def placed(tree: Any, leaf_of: Callable[[jax.Array], jax.Array]) -> Any:
        def choose(path: Any, old: jax.Array) -> jax.Array:
            name = key_path_parts(path)
            return leaf_of(new[name]) if name in new else old

        return jax.tree_util.tree_map_with_path(choose, tree)

    state = dataclasses.replace(
        state,
        params=placed(state.params, lambda leaf: leaf),
        ema=None if state.ema is None else placed(state.ema, jnp.copy),  # one buffer cannot be donated twice
        stats=taken.stats if stats else state.stats,
    )
    said = f"first parameters of {', '.join(parts)} from step {taken.step} of {source.directory}"
    said += ", averaged weights" if taken.averaged else ""
    if lacking:
        names = ", ".join(name for name in ADDED if any(name in path for path in lacking))
        said += f"; drawn: {sum(leaf.size for leaf in lacking.values()):,} of {names}, which it has not"
    if left := _left(config, state.params, source.parameter_shapes(step)):
        said += f"; left there, as this model has no such parts: {left}"
    return state, said


def _left(config: AnyRun, params: Any, there: Mapping[tuple[str, ...], tuple[int, ...]]) -> str:
    """How many parameters of a checkpoint (`there`, shapes by path) the model `params` has no place for, of the parts that are taken: by
    part of the model, with the modules where it is not all of one."""
    ours = {key_path_parts(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    counts: dict[str, int] = {}
    modules: dict[str, dict[str, None]] = {}
    for path, shape in there.items():
        part = path[0]
        if path in ours or (config.init.parts and part not in config.init.parts):
            continue
        counts[part] = counts.get(part, 0) + math.prod(shape)
        module = path[1:] if path[-1].endswith("_relative") else path[1:-1]
        modules.setdefault(part, {})["/".join(module)] = None
    known = {path[0] for path in ours}
    return ", ".join(f"{part} {count:,}" + (f" ({', '.join(modules[part])})" if part in known else "") for part, count in counts.items())


def described(tree: Any) -> Any:
    """Returns the arrays of `tree` as shapes, dtypes and shardings."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
