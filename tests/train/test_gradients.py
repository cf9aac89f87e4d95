"""One batch, one gradient: on one device, on several with the parameters split, and in micro-batches, with everything random on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_case import BLOCKS, CONFIG, Batches

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import DataConfig, LossConfig, MeshConfig
from ofa_jax.data.batch import Block, pad_block
from ofa_jax.models.precision import policy
from ofa_jax.parallel.mesh import batch_sharding, make_mesh
from ofa_jax.train.gradients import gradients
from ofa_jax.train.objective import make_objective
from ofa_jax.train.state import init_state, state_shardings
from ofa_jax.train.step import make_train_step, num_compilations, put_batch

# Dropout, dropped paths, sampled patches and R-Drop's copies: what a row draws depends on its place in its block alone.
EXACT = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(CONFIG.model, norm_group=2, encoder_drop_path_rate=0.2, decoder_drop_path_rate=0.2, attention_dropout=0.1),
    precision="f64",
    data=DataConfig(blocks=tuple(dataclasses.replace(block, rows=16) for block in BLOCKS)),
    loss=LossConfig(label_smoothing=0.1, r_drop_alpha=0.5, logit_chunk=5),
)
MANY = MeshConfig(data=2, fsdp=4)


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


def gradients_of(config, params, stats, *, mesh, devices):
    """Returns ((loss, report), gradients) of one batch, as NumPy arrays."""
    config = dataclasses.replace(config, mesh=mesh)
    placed = make_mesh(mesh, devices=jax.devices()[:devices])
    objective, shardings = make_objective(config), state_shardings(config, placed).params
    blocks = put_batch(batch_of(config, rows=16), placed)

    def loss_of(params, stats, blocks, key, step, counts):
        return objective.loss(params, stats, blocks, key, num_tasks=4, step=step, counts=counts)

    def run(params, stats, blocks):
        return gradients(
            loss_of,
            params,
            stats,
            blocks,
            jax.random.key(0),
            jnp.int32(7),
            counts_of=objective.counts,
            micros=config.optimizer.accumulate,
            mesh=placed,
            shardings=shardings,
            compute=policy(config.precision).compute,
        )

    options = {"xla_backend_optimization_level": 0}  # compiles twice as fast
    params = jax.device_put(params, shardings)
    return jax.device_get(
        jax.jit(run, in_shardings=(shardings, None, batch_sharding(placed)), compiler_options=options)(params, stats, blocks)
    )


def in_micros(config, count):
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, accumulate=count))


def assert_same(whole, parts, *, what):
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(whole)[0], jax.tree.leaves(parts), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.max(np.abs(a - b)) <= 1e-9 * max(np.max(np.abs(a)), 1e-9), (what, jax.tree_util.keystr(path))


def drawn(config):
    return jax.device_get(init_state(config, make_mesh(config.mesh, devices=jax.devices()[:1])))


@pytest.mark.parametrize("norm", [pytest.param("batch", marks=pytest.mark.full), "frozen"])
@pytest.mark.parametrize(
    "parts",
    [((4, MeshConfig(), 1), (1, MANY, 8)), pytest.param(((2, MeshConfig(data=1, fsdp=2), 2),), marks=pytest.mark.full)],
    ids=["either", "both"],
)
def test_devices_and_micro_batches_have_the_gradients_of_the_batch(x64: None, norm, parts):
    config = dataclasses.replace(EXACT, model=dataclasses.replace(EXACT.model, image_norm=norm))
    state = drawn(config)
    whole = gradients_of(config, state.params, state.stats, mesh=MeshConfig(), devices=1)
    assert float(whole[0][0]) > 1
    for count, mesh, devices in parts:
        found = gradients_of(in_micros(config, count), state.params, state.stats, mesh=mesh, devices=devices)
        assert_same(whole, found, what=(count, mesh))
        if norm == "frozen":
            jax.tree.map(np.testing.assert_array_equal, found[0][1].stats, state.stats)


@pytest.mark.full
@pytest.mark.parametrize("mesh", [MANY, MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=8)], ids=str)
@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(label_smoothing=0.1, encouraging_log_end=0.75),
        LossConfig(drop_worst=(0.2, 3), drop_best=(0.1, 3), r_drop_alpha=0.5, logit_chunk=4),
        LossConfig(label_smoothing=0.1, constraint_range=(4, 66)),
    ],
    ids=["encouraging", "dropping", "range"],
)
def test_what_asks_all_devices_has_the_gradients_of_the_batch(x64: None, mesh, loss):
    """Statistics of whole streams, tokens that are dropped, sums over the vocabulary's parts."""
    config = dataclasses.replace(EXACT, model=dataclasses.replace(EXACT.model, norm_group=0), loss=loss)
    state = drawn(config)
    whole = gradients_of(config, state.params, state.stats, mesh=MeshConfig(), devices=1)
    assert_same(whole, gradients_of(config, state.params, state.stats, mesh=mesh, devices=8), what=mesh)


def test_rows_that_cannot_be_shared_are_refused():
    config = in_micros(dataclasses.replace(CONFIG, mesh=MeshConfig()), 3)
    mesh = make_mesh(config.mesh, devices=jax.devices()[:2])
    with pytest.raises(UserError, match=r"data\.blocks\.\w+\.rows: found 8, expected a multiple of 6 \(optimizer\.accumulate=3 on 2 dev"):
        make_train_step(config, mesh, num_tasks=4).lower(init_state(config, mesh), put_batch(Batches(config).batch(0), mesh))


@pytest.mark.full
def test_a_step_of_micro_batches_is_one_program_with_less_memory():
    """With dropout and sampled patches, which are those of the whole batch."""
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
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert memory[1] < 0.6 * memory[0]
    assert jnp.isfinite(losses[1])
