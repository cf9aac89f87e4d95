"""The first parameters of a run from another run's checkpoint: what is taken, what stays, what is refused."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from train_case import BLOCKS, CONFIG, TASK_NAMES, Batches

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.schema import CheckpointConfig, InitConfig
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.initial import take_parameters
from ofa_jax.train.loop import train
from ofa_jax.train.state import init_state

pytestmark = pytest.mark.usefixtures("compiled_programs")
ONE_BLOCK = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[:1]), checkpoint=CheckpointConfig(100, 0.0, 2))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(CONFIG.mesh, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def first(tmp_path_factory, mesh):
    """A run that kept its state at step 7: its folder and the state."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    config = dataclasses.replace(ONE_BLOCK, seed=5)
    state = init_state(config, mesh)
    state = dataclasses.replace(
        state, ema=jax.tree.map(lambda p: p + 1.0, state.params), stats=jax.tree.map(lambda s: s + 2.0, state.stats)
    )
    manager = CheckpointManager(folder)
    manager.save(7, state, config=config, wait=True)
    manager.close()
    return folder, jax.device_get(state)


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_front_alone_with_its_statistics(first, mesh):
    folder, stored = first
    config = dataclasses.replace(ONE_BLOCK, init=InitConfig(str(folder), ("resnet",)))
    drawn = init_state(config, mesh)
    state, said = take_parameters(config, drawn)
    assert said == f"first parameters of resnet from step 7 of {folder}/checkpoints, averaged weights"
    assert equal(state.params["resnet"], stored.ema["resnet"]) and equal(state.ema["resnet"], stored.ema["resnet"])
    assert equal(state.stats, stored.stats)
    assert equal(state.params["encoder"], drawn.params["encoder"]) and equal(state.ema["encoder"], drawn.ema["encoder"])
    assert int(state.step) == int(state.data_step) == 0 and equal(state.opt_state, drawn.opt_state)
    assert jax.tree.structure(state) == jax.tree.structure(drawn)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(drawn), strict=True):
        assert a.sharding == b.sharding and a.dtype == b.dtype


def test_all_parts_and_one_checkpoint_by_its_path(first, mesh):
    folder, stored = first
    config = dataclasses.replace(ONE_BLOCK, init=InitConfig(f"{folder}/checkpoints/7"))
    state, _ = take_parameters(config, init_state(config, mesh))
    assert isinstance(state.params, nnx.State) and equal(state.params, stored.ema)


def test_what_light_fine_tuning_adds_stays_as_it_was_drawn(first, mesh):
    folder, stored = first
    model = dataclasses.replace(ONE_BLOCK.model, lora_rank=2, adapter_width=3)
    config = dataclasses.replace(ONE_BLOCK, model=model, init=InitConfig(str(folder)))
    drawn = init_state(config, mesh)
    state, said = take_parameters(config, drawn)
    added = {path: leaf for path, leaf in nnx.to_flat_state(drawn.params) if {"lora", "adapter"} & set(path)}
    count = sum(leaf.size for leaf in added.values())
    assert said.endswith(f"averaged weights; drawn: {count:,} of adapter, lora, which it has not")
    ours, theirs = dict(nnx.to_flat_state(state.params)), dict(nnx.to_flat_state(stored.ema))
    assert set(ours) == set(theirs) | set(added)
    assert equal({path: ours[path] for path in theirs}, theirs) and equal({path: ours[path] for path in added}, added)


def test_what_does_not_fit_is_one_sentence(first, mesh, tmp_path):
    folder, _ = first

    def take(config):
        return take_parameters(config, init_state(config, mesh))

    with pytest.raises(CheckpointError, match=f"init.checkpoint: found no complete checkpoint in {tmp_path}/none/checkpoints"):
        take(dataclasses.replace(ONE_BLOCK, init=InitConfig(str(tmp_path / "none"))))
    wide = dataclasses.replace(ONE_BLOCK.model, resnet=dataclasses.replace(ONE_BLOCK.model.resnet, base_width=12))
    with pytest.raises(CheckpointError, match=r"ema/resnet/.*: found shape .*, expected"):
        take(dataclasses.replace(ONE_BLOCK, model=wide, init=InitConfig(str(folder), ("resnet",))))


@pytest.mark.full
def test_a_new_run_starts_from_another_and_a_resumed_one_keeps_its_own(tmp_path, capsys):
    def run(config):
        return train(config, Batches(config), task_names=TASK_NAMES, devices=jax.devices()[:1])

    base = dataclasses.replace(ONE_BLOCK, workdir=str(tmp_path / "{name}"), steps=1)
    run(dataclasses.replace(base, name="first"))
    second = dataclasses.replace(base, name="second", init=InitConfig(str(tmp_path / "first")))
    run(second)
    assert "first parameters of decoder, embedding, encoder, resnet from step 1 of" in capsys.readouterr().out
    run(dataclasses.replace(second, steps=2))
    said = capsys.readouterr().out
    assert "first parameters" not in said and "going on from step 1" in said
