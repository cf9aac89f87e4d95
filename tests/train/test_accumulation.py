"""Micro-batches: the same gradients as the whole batch, whatever normalises the pictures, in less memory and one program."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_case import BLOCKS, CONFIG, Batches

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import DataConfig, LossConfig
from ofa_jax.data.batch import Block, pad_block
from ofa_jax.parallel.mesh import batch_sharding, make_mesh
from ofa_jax.train.accumulation import accumulate, split_batch
from ofa_jax.train.objective import make_objective
from ofa_jax.train.state import init_state, state_shardings
from ofa_jax.train.step import make_train_step, num_compilations, put_batch

# Without random draws, which each micro-batch makes for itself.
STILL = dataclasses.replace(CONFIG.model, dropout=0.0, norm_group=2)
EXACT = dataclasses.replace(
    CONFIG,
    model=STILL,
    precision="f64",
    data=DataConfig(blocks=tuple(dataclasses.replace(block, num_patches=0) for block in BLOCKS)),
    loss=LossConfig(label_smoothing=0.1, r_drop_alpha=0.5),
)


@pytest.fixture(scope="module")
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def batch_of(config, *, rows):
    """A batch whose last rows are padding, of each block another number; what stays has targets of all lengths."""
    blocks = {}
    for index, (name, block) in enumerate(Batches(config).batch(0).blocks.items()):
        part = Block(*(None if x is None else x[: len(x) - (index + 1) * len(x) // rows] for x in block))
        blocks[name] = pad_block(part, rows)
    return Batches(config).batch(0)._replace(blocks=blocks)


def gradients(config, params, stats, *, count, devices):
    """Returns ((loss, report), gradients) of one batch, as NumPy arrays."""
    mesh = make_mesh(config.mesh, devices=jax.devices()[:devices])
    objective = make_objective(config)
    shardings = state_shardings(config, mesh).params
    blocks = put_batch(batch_of(config, rows=8), mesh)

    def run(params, stats, blocks):
        counts = objective.counts(blocks) if count > 1 else None

        def loss_of(params, blocks, key):
            return objective.loss(params, stats, blocks, key, num_tasks=4, counts=counts)

        key = jax.random.key(0)
        if count == 1:
            return jax.value_and_grad(loss_of, has_aux=True)(params, blocks, key)
        return accumulate(loss_of, params, stats, blocks, key, count=count, mesh=mesh, shardings=shardings)

    options = {"xla_backend_optimization_level": 0}  # compiles twice as fast
    params = jax.device_put(params, shardings)
    return jax.device_get(
        jax.jit(run, in_shardings=(shardings, None, batch_sharding(mesh)), compiler_options=options)(params, stats, blocks)
    )


@pytest.mark.parametrize("norm", [pytest.param("batch", marks=pytest.mark.full), "frozen"])
def test_micro_batches_have_the_gradients_of_the_batch(x64: None, norm):
    config = dataclasses.replace(EXACT, model=dataclasses.replace(STILL, image_norm=norm))
    state = jax.device_get(init_state(config, make_mesh(config.mesh, devices=jax.devices()[:1])))
    whole = gradients(config, state.params, state.stats, count=1, devices=1)
    assert float(whole[0][0]) > 1
    for count, devices in ((4, 1), (2, 2)):
        parts = gradients(config, state.params, state.stats, count=count, devices=devices)
        for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(whole)[0], jax.tree.leaves(parts), strict=True):
            assert np.max(np.abs(a - b)) <= 1e-9 * max(np.max(np.abs(a)), 1e-9), (count, devices, jax.tree_util.keystr(path))
        if norm == "frozen":
            jax.tree.map(np.testing.assert_array_equal, parts[0][1].stats, state.stats)


def test_a_micro_batch_has_rows_of_every_device_that_were_neighbours():
    mesh = make_mesh(CONFIG.mesh, devices=jax.devices()[:2])
    blocks = {"text": Batches(CONFIG).batch(0).blocks["text"]._replace(elements=None, task_ids=np.arange(8, dtype=np.int32))}
    micros = jax.jit(lambda blocks: split_batch(blocks, count=2, mesh=mesh))(blocks)
    assert np.asarray(micros["text"].task_ids).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    with pytest.raises(UserError, match=r"data\.blocks\.text\.rows: found 8, expected a multiple of 6 \(optimizer\.accumulate=3 on 2 dev"):
        jax.eval_shape(lambda blocks: split_batch(blocks, count=3, mesh=mesh), blocks)


@pytest.mark.full
def test_a_step_of_micro_batches_is_one_program_with_less_memory():
    """With dropout and sampled patches, drawn by each micro-batch for itself: the loss differs by that alone."""
    losses, memory = [], []
    for count in (1, 4):
        config = dataclasses.replace(
            CONFIG,
            model=dataclasses.replace(CONFIG.model, norm_group=2),
            optimizer=dataclasses.replace(CONFIG.optimizer, accumulate=count, frozen=("resnet",)),
        )
        mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
        step, state = make_train_step(config, mesh, num_tasks=4), init_state(config, mesh)
        blocks = put_batch(Batches(config).batch(0), mesh)
        memory.append(step.lower(state, blocks).compile().memory_analysis().temp_size_in_bytes)
        before = np.asarray(state.params["resnet"]["stem"][...])
        for data_step in range(2):
            state, metrics = step(state, put_batch(Batches(config).batch(data_step), mesh))
        assert num_compilations(step) == 1 and int(state.step) == 2
        np.testing.assert_array_equal(np.asarray(state.params["resnet"]["stem"][...]), before)
        losses.append(float(metrics.loss))
        np.testing.assert_allclose(sum(map(float, metrics.group_loss.values())), losses[-1], rtol=1e-5)
    print(f"temporary memory of a step: {memory[0]:,} bytes at once, {memory[1]:,} in four micro-batches")
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)
    assert memory[1] < 0.6 * memory[0]
    assert jnp.isfinite(losses[1])
