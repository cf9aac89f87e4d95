"""Arithmetic on shapes is what arrays take: the state on devices, the batch from the pipeline; and the compiler's number holds both."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.quickstart_vqgan import get_config as vqgan
from ofa_jax.config.schema import MeshConfig
from ofa_jax.doctor.layout import batch_shards
from ofa_jax.doctor.memory import (
    StateBytes,
    available_bytes,
    batch_bytes,
    check_device_memory,
    check_host_memory,
    compiled_bytes,
    device_limit,
    state_bytes,
)
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.pods.program import checkpoint_bytes
from ofa_jax.prepare import fixtures
from ofa_jax.tasks.table import TASK_NAMES
from ofa_jax.tasks.training_data import training_pipeline
from ofa_jax.train.state import init_state
from ofa_jax.train.step import abstract_blocks
from tests.e2e.small_run import get_config


def on_data(config, folder: Path):
    found = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(folder)))
    if hasattr(found, "vocab"):
        found = dataclasses.replace(found, vocab=dataclasses.replace(found.vocab, path=str(folder / "tokenizer.model")))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write(tmp_path_factory.mktemp("fixtures") / "data")


@pytest.mark.full
def test_the_state_takes_on_a_device_what_arithmetic_says():
    config = dataclasses.replace(get_config(), mesh=MeshConfig(data=-1, fsdp=len(jax.devices())))
    found = state_bytes(config, len(jax.devices()))
    state = init_state(config, make_mesh(config.mesh))
    on_first = {
        part: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(getattr(state, part)))
        for part in ("params", "opt_state", "ema")
    }
    assert (found.params, found.optimizer, found.average) == tuple(on_first.values())
    # A step has all parameters whole, and their gradients, but for the vocabulary's, whose parts stay where they are.
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    vocabulary = state.params["embedding"]["table"][...].nbytes
    assert found.gradients == whole - vocabulary * 7 // 8 and found.params < found.gathered < found.gradients
    assert checkpoint_bytes(config) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert found.total < checkpoint_bytes(config) * 2


def test_fsdp_splits_the_state_and_a_checkpoint_holds_all_of_it():
    config = get_config()
    whole, split = (state_bytes(dataclasses.replace(config, mesh=MeshConfig(fsdp=fsdp)), 8) for fsdp in (1, 8))
    assert whole.params == whole.gradients == whole.average and whole.optimizer == pytest.approx(2 * whole.params, rel=0.3)
    assert whole.params / 8 < split.params < whole.params / 2
    assert checkpoint_bytes(config) == pytest.approx(whole.total - whole.gradients, rel=0.01)


@pytest.mark.parametrize("make", [get_config, lambda: vqgan("debug")])
def test_the_batch_has_the_shapes_that_the_pipeline_gives(make, data: Path):
    config = on_data(make(), data)
    pipeline, _ = training_pipeline(config)
    batch = pipeline.batch(0)
    given = {name: block._replace(elements=None) for name, block in batch.blocks.items()}
    described = jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), abstract_blocks(config))
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), given)
    assert batch_bytes(config) == sum(leaf.nbytes for leaf in jax.tree.leaves(given))


@pytest.mark.full
def test_a_compiled_step_takes_the_state_and_more():
    config = get_config()
    state = state_bytes(config, len(jax.devices()))
    compiled = compiled_bytes(config, num_tasks=len(TASK_NAMES))
    assert state.params + state.optimizer + state.average < compiled < 100 * state.total
    [found] = check_device_memory(state, 1e9, "a device", compiled=compiled, num_batch_bytes=batch_bytes(config) / batch_shards(config, 8))
    assert found.status == "ok" and "activations included" in found.text


def test_what_does_not_fit_is_told_with_what_to_do():
    state = StateBytes(params=4 * 10**9, optimizer=8 * 10**9, average=0, gradients=4 * 10**9, other=0)
    ask = {"of": "TPU v5e", "num_batch_bytes": 0.0}
    statuses = [check_device_memory(state, limit, compiled=None, **ask)[0].status for limit in (15e9, 20e9, 32e9)]
    assert statuses == ["FAIL", "WARN", "ok"]
    [found] = check_device_memory(state, 32e9, compiled=33 * 10**9, **ask)
    assert found.status == "FAIL" and "raise mesh.fsdp" in found.text and "33.00 GB, activations included" in found.text
    [found] = check_device_memory(state, None, compiled=None, **ask)
    assert found.status == "WARN" and "how much TPU v5e has is not known" in found.text


def test_the_host_tells_its_free_memory():
    limit, of = device_limit()
    assert limit is not None and 1e6 < limit <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") and "free memory" in of
    [found] = check_host_memory(get_config(), state_bytes(get_config(), 8), on_cpu=True)
    assert found.status == "ok" and available_bytes() > 0
    huge = dataclasses.replace(get_config().data, prefetch=10**9)
    [found] = check_host_memory(dataclasses.replace(get_config(), data=huge), state_bytes(get_config(), 8), on_cpu=True)
    assert found.status == "FAIL" and "lower data.prefetch" in found.text
