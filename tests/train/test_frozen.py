"""Runs with frozen parameters: they stay as they are, have no moments, and go on from checkpoints that still hold some."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from train_case import BLOCKS, CONFIG, TASK_NAMES, Batches

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import UserError
from ofa_jax.config.load import run_folder
from ofa_jax.config.parameters import is_named
from ofa_jax.config.schema import CheckpointConfig, MeshConfig
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.parallel.rules import key_path_parts
from ofa_jax.train.loop import train
from ofa_jax.train.objective import make_objective
from ofa_jax.train.state import abstract_state, init_state, state_shardings

FROZEN = ("resnet", "encoder/layers/self_attention", "**/*norm")
OPEN = dataclasses.replace(
    CONFIG,
    data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[2:]),
    optimizer=dataclasses.replace(CONFIG.optimizer, ema_decay=0.0),
    checkpoint=CheckpointConfig(100, 0.0, 2),
    steps=3,
)
CLOSED = dataclasses.replace(OPEN, optimizer=dataclasses.replace(OPEN.optimizer, frozen=FROZEN))


def named(tree):
    return {key_path_parts(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def test_moments_of_what_learns_alone_are_placed_like_their_parameters():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), devices=jax.devices()[:8])
    state, shardings = abstract_state(CLOSED), state_shardings(CLOSED, mesh)
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(shardings.opt_state)
    of_params = {key_path_parts(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(shardings.params)[0]}
    of_moments = {key_path_parts(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(shardings.opt_state[1].mu)[0]}
    assert set(of_moments) == {name for name in of_params if not is_named(name, FROZEN)}
    assert all(of_params[name] == sharding for name, sharding in of_moments.items())


def test_a_run_goes_on_from_a_checkpoint_that_holds_moments_of_frozen_parameters(tmp_path, compiled_programs):
    config = dataclasses.replace(CLOSED, workdir=str(tmp_path))
    start = init_state(OPEN, make_mesh(OPEN.mesh, devices=jax.devices()[:1]))
    manager = CheckpointManager(run_folder(config))
    manager.save(0, start, config=config, wait=True)
    manager.close()
    first = named(start.params)
    result = train(config, Batches(config), task_names=TASK_NAMES, devices=jax.devices()[:1])
    assert result.step == 3
    last = named(result.state.params)
    moved = {name for name in first if np.any(first[name] != last[name])}
    assert moved and not any(is_named(name, FROZEN) for name in moved)
    learns = {name for name in first if not is_named(name, FROZEN)}
    assert {name for name in learns if np.any(first[name])} <= moved, "with decay all that is not frozen and not 0 moves"
    assert CheckpointManager(run_folder(config), read_only=True).steps() == [0, 3]


def test_a_name_of_nothing_is_told_before_anything_starts():
    config = dataclasses.replace(OPEN, optimizer=dataclasses.replace(OPEN.optimizer, frozen=("decoder/layers/cross_atention/*",)))
    with pytest.raises(
        UserError, match=r"found decoder/layers/cross_atention/\*, which names no parameter .* did you mean decoder/layers/cross_att"
    ):
        make_objective(config).check()


def test_bitfit_moves_biases_alone(tmp_path, compiled_programs):
    """The biases of norms and of the feed-forward's layers, as the official light fine-tuning chooses them."""
    trained = ("**/*norm/bias", "**/ffn/*/bias")
    optimizer = dataclasses.replace(OPEN.optimizer, trained=trained, frozen=("resnet",))
    config = dataclasses.replace(OPEN, optimizer=optimizer, steps=2, workdir=str(tmp_path))
    first = named(init_state(config, make_mesh(config.mesh, devices=jax.devices()[:1])).params)
    result = train(config, Batches(config), task_names=TASK_NAMES, devices=jax.devices()[:1])
    last = named(result.state.params)
    moved = {name for name in first if np.any(first[name] != last[name])}
    learns = {name for name in first if is_named(name, trained) and name[0] != "resnet"}
    assert moved <= learns == set(named(result.state.opt_state[1].mu))
    assert all("image_norm" in name or "code_norm" in name for name in learns - moved), "the blocks are texts: norms of pictures do not run"
