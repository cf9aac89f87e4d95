"""One step: layouts agree under float64, patches are sampled without repeats, batches are checked."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from train_case import BLOCKS, CONFIG, Batches

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import MeshConfig, SourceConfig
from ofa_jax.models import ofa
from ofa_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from ofa_jax.train import step as stepping
from ofa_jax.train.keys import DATA_KEY, run_key
from ofa_jax.train.optimizer import norms_by_part
from ofa_jax.train.pretraining import batch_loss, sample_patches
from ofa_jax.train.state import abstract_state, init_state, state_shardings
from ofa_jax.train.step import put_batch
from ofa_jax.train.token_objective import check_batch, check_streams, code_rows

FLOAT64 = dataclasses.replace(CONFIG, precision="f64", data=dataclasses.replace(CONFIG.data, blocks=(BLOCKS[0], BLOCKS[2])))


def loss_and_gradients(config, devices, params, stats):
    """Returns ((loss, (statistics, sums)), gradients) of one batch on a mesh over `devices`, as NumPy arrays."""
    mesh = make_mesh(config.mesh, devices=devices)
    shardings = state_shardings(config, mesh)
    graphdef = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, run_key(1, 0), precision=config.precision))[0]

    def loss(params, stats, blocks):
        key = jax.random.fold_in(run_key(config.seed, DATA_KEY), 0)
        return batch_loss(params, stats, blocks, key, graphdef=graphdef, config=config, num_tasks=4)

    run = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        in_shardings=(shardings.params, replicated(mesh), batch_sharding(mesh)),
        out_shardings=((replicated(mesh), replicated(mesh)), shardings.params),
        compiler_options={"xla_backend_optimization_level": 0},  # compiles twice as fast, and float64 forgives the rounding
    )
    return jax.device_get(run(params, stats, put_batch(Batches(config).batch(0), mesh)))


@pytest.fixture(scope="module")
def one_and_eight():
    """The same loss and gradients on one device and on eight that split rows, parameters and heads."""
    jax.config.update("jax_enable_x64", True)
    try:
        state = jax.device_get(init_state(FLOAT64, make_mesh(FLOAT64.mesh, devices=jax.devices()[:1])))
        one = loss_and_gradients(FLOAT64, jax.devices()[:1], state.params, state.stats)
        split = dataclasses.replace(FLOAT64, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
        yield one, loss_and_gradients(split, jax.devices()[:8], state.params, state.stats)
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.full
def test_layouts_and_device_counts_agree_in_float64(one_and_eight):
    one, eight = one_and_eight
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(eight), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.max(np.abs(a - b)) <= 1e-9 * max(np.max(np.abs(a)), 1e-9), jax.tree_util.keystr(path)


@pytest.mark.full
def test_norms_by_part_do_not_know_the_device_count(one_and_eight):
    one, eight = (norms_by_part(grads) for _, grads in one_and_eight)
    assert set(one) == {"embedding", "resnet", "encoder", "decoder"}
    for name in one:
        np.testing.assert_allclose(float(one[name]), float(eight[name]), rtol=1e-9)


@pytest.mark.full
def test_norms_by_part_change_nothing_to_the_bit(monkeypatch):
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[2:]))
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    batch, results = Batches(config).batch(0), []
    for function in (norms_by_part, lambda grads: {}):
        monkeypatch.setattr(stepping, "norms_by_part", function)
        step = stepping.make_train_step(config, mesh, num_tasks=4)
        state, metrics = step(init_state(config, mesh), put_batch(batch, mesh))
        results.append((jax.device_get(step(state, put_batch(batch, mesh))[0]), metrics))
        assert stepping.num_compilations(step) == 1
    (with_them, metrics), (without, _) = results
    jax.tree.map(np.testing.assert_array_equal, with_them, without)
    squares = sum(float(norm) ** 2 for norm in metrics.part_norms.values())
    np.testing.assert_allclose(squares, float(metrics.grad_norm) ** 2, rtol=1e-5)


@pytest.mark.full
def test_gradients_reach_every_parameter_that_the_batch_uses(one_and_eight):
    (_, (stats, groups)), grads = one_and_eight[0]
    zero = {jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_flatten_with_path(grads)[0] if not np.any(np.asarray(g))}
    # The image side of the decoder is only used by image codes, which this batch has none of.
    assert all("decoder" in name and ("image" in name or "code" in name) for name in zero), zero
    assert set(groups) == {"pairs", "images_text"}
    assert all(np.any((leaf != 0) & (leaf != 1)) for leaf in jax.tree.leaves(stats))


def test_the_state_is_described_without_making_it():
    abstract = abstract_state(CONFIG)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))
    assert jax.tree.structure(abstract.params) == jax.tree.structure(abstract.ema)
    assert isinstance(abstract.params, nnx.State)
    no_average = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, ema_decay=0.0))
    assert abstract_state(no_average).ema is None


def test_patches_are_a_uniform_draw_without_repeats():
    ids = np.asarray(sample_patches(jax.random.split(jax.random.key(0), 400), num_patches=16, keep=5))
    assert ids.shape == (400, 5)
    assert ids.min() == 0 and ids.max() == 15
    assert np.all(np.diff(ids, axis=1) > 0)
    counts = np.bincount(ids.ravel(), minlength=16)
    assert np.all(np.abs(counts - 125) < 5 * np.sqrt(125 * 11 / 16))
    np.testing.assert_array_equal(
        np.asarray(sample_patches(jax.random.split(jax.random.key(1), 3), num_patches=4, keep=4)), np.tile(np.arange(4), (3, 1))
    )


def changed(batch, name, **arrays):
    return batch._replace(blocks={**batch.blocks, name: batch.blocks[name]._replace(**arrays)})


def test_a_bad_batch_is_one_sentence():
    batch = Batches().batch(0)
    check_batch(batch, CONFIG)
    ids = batch.blocks["text"].source_ids.copy()
    ids[2, 1] = CONFIG.vocab.size
    with pytest.raises(UserError, match="batch 0, block text, source_ids: found id 76, expected 0 to 75"):
        check_batch(changed(batch, "text", source_ids=ids), CONFIG)
    with pytest.raises(UserError, match="target_ids: found id -4"):
        check_batch(changed(batch, "pairs", target_ids=batch.blocks["pairs"].target_ids - 5), CONFIG)
    with pytest.raises(UserError, match=r"decoder_ids: found shape \(8, 5\), expected a multiple of 8 sequences of 12 ids"):
        check_batch(changed(batch, "text", decoder_ids=ids[:, :5]), CONFIG)
    with pytest.raises(UserError, match="code_mask"):
        check_batch(changed(batch, "text", code_mask=np.ones(8, bool)), CONFIG)
    with pytest.raises(UserError, match="found blocks"):
        check_batch(batch._replace(blocks={"text": batch.blocks["text"]}), CONFIG)
    with pytest.raises(UserError, match="found 8 rows, expected 4"):
        check_batch(batch, CONFIG, num_hosts=2)


def test_streams_share_one_picture_size_and_have_enough_patches():
    def with_block(**changes):
        return dataclasses.replace(
            CONFIG, data=dataclasses.replace(CONFIG.data, blocks=(BLOCKS[0], dataclasses.replace(BLOCKS[0], **changes)))
        )

    with pytest.raises(UserError, match="data.blocks.long.image_px: found 64, expected 32 as in block pairs"):
        check_streams(with_block(name="long", image_px=64))
    with pytest.raises(UserError, match="data.blocks.long.num_patches: found 65, expected at most 64"):
        check_streams(with_block(name="long", num_patches=65))
    assert [code_rows(block) for block in BLOCKS] == ["none", "all", "none"]
    assert code_rows(dataclasses.replace(BLOCKS[1], sources=(*BLOCKS[1].sources, SourceConfig("d", "detection")))) == "mixed"
