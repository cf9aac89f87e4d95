"""The first parameters of a run that goes on from another one: a second stage, or parts that were trained elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ofa_jax.checkpoint.manager import CheckpointManager, find_run
from ofa_jax.checkpoint.trees import from_paths
from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.schema import AnyRun
from ofa_jax.parallel.rules import key_path_parts
from ofa_jax.train.state import TrainState

ADDED = ("adapter", "prompt", "lora")  # modules that light fine-tuning adds to a model


def take_parameters(config: AnyRun, state: TrainState) -> tuple[TrainState, str]:
    """Returns `state` with the parts that `config.init` names from the newest checkpoint there, and a sentence that says what was taken.

    The average of the weights is taken where that run kept one; running batch-norm statistics come with the ResNet. Optimizer, step
    and data order stay those of a new run. What light fine-tuning puts into a model (`ADDED`) stays as it was drawn where that run has
    none. Raises `CheckpointError` when there is no complete checkpoint or a part does not fit.
    """
    parts = config.init.parts or tuple(state.params)
    folder, step = find_run(config.init.checkpoint)
    manager = CheckpointManager(folder, read_only=True)
    if not manager.steps():
        raise CheckpointError(
            f"init.checkpoint: found no complete checkpoint in {manager.directory}, expected one; train that run first, "
            "or give --config.init.checkpoint= to start from drawn parameters"
        )
    there = manager.parameter_paths(step)
    leaves = {key_path_parts(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]}
    lacking = {path: leaf for path, leaf in leaves.items() if path[0] in parts and path not in there and set(path) & set(ADDED)}
    wanted = from_paths({path: leaf for path, leaf in leaves.items() if path[0] in parts and path not in lacking})
    stats = state.stats if "resnet" in parts else None
    taken = manager.restore_params(_described(wanted), None if stats is None else _described(stats), step=step, only_wanted=True)
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
        stats=state.stats if stats is None else taken.stats,
    )
    said = f"first parameters of {', '.join(parts)} from step {taken.step} of {manager.directory}"
    said += ", averaged weights" if taken.averaged else ""
    if lacking:
        names = ", ".join(name for name in ADDED if any(name in path for path in lacking))
        said += f"; drawn: {sum(leaf.size for leaf in lacking.values()):,} of {names}, which it has not"
    return state, said


def _described(tree: Any) -> Any:
    """The arrays of `tree` as shapes, dtypes and shardings."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
