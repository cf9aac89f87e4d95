"""The options of the loss in pretraining: R-Drop's copies, dropping by the count of updates, the constraint range of a batch."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from train_case import BLOCKS, CONFIG, VOCAB, Batches, make_block

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import PAD_ID, DataConfig, LengthClass, LossConfig
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.objective import make_objective
from ofa_jax.train.pretraining import repeat_sequences
from ofa_jax.train.state import init_state
from ofa_jax.train.step import make_train_step, put_batch
from ofa_jax.train.token_objective import check_batch

TEXT = dataclasses.replace(CONFIG, data=DataConfig(blocks=BLOCKS[2:]))


def blocks_of(config, data_step=0):
    """Returns the arrays of a made-up batch whose sequences all have confidence 1."""
    blocks = Batches(config).batch(data_step).blocks
    return {name: b._replace(elements=None, confidence=np.ones_like(b.confidence)) for name, b in blocks.items()}


def text_loss(loss, dropout=0.1):
    """Returns (L, sums of the group) as a compiled function of the key (None: evaluation) and the step, for one set of parameters."""
    config = dataclasses.replace(TEXT, loss=loss, model=dataclasses.replace(CONFIG.model, dropout=dropout))
    objective, blocks = make_objective(config), blocks_of(config)
    params, stats = objective.init(jax.random.key(0))

    @jax.jit
    def run(key, step):
        total, (_, groups, _) = objective.loss(params, stats, blocks, key, num_tasks=4, step=step)
        return total, groups["images_text"]

    return run


def test_copies_are_neighbours_with_the_picture_of_their_row():
    block = blocks_of(CONFIG)["pairs"]
    twice = repeat_sequences(block)
    assert twice.images is block.images and twice.image_mask is block.image_mask
    for name in ("source_ids", "decoder_ids", "target_ids", "confidence", "code_mask", "task_ids"):
        for copy in (0, 1):
            np.testing.assert_array_equal(getattr(twice, name)[copy::2], getattr(block, name))
    rows, per_row = len(block.images), len(twice.source_ids) // len(block.images)
    assert (np.arange(len(twice.source_ids)) // per_row).tolist() == np.arange(rows).repeat(2 * len(block.source_ids) // rows).tolist()


def test_r_drop_runs_with_pictures_sampled_patches_and_codes():
    config = dataclasses.replace(CONFIG, loss=LossConfig(0.1, 8, (), (0.2, 0), (0.1, 0), 0.75, 1.0))
    objective = make_objective(config)
    params, stats = jax.eval_shape(objective.init, jax.random.key(0))

    def run(params, stats):
        return objective.loss(params, stats, blocks_of(config), jax.random.key(1), num_tasks=4, step=0)

    loss, (new_stats, groups, _) = jax.eval_shape(run, params, stats)
    assert loss.shape == () and set(groups) == {"pairs", "images_text"}
    assert jax.tree.map(lambda x: x.shape, new_stats) == jax.tree.map(lambda x: x.shape, stats)


def test_copies_diverge_by_dropout_alone():
    key = jax.random.key(3)
    still, still_sums = text_loss(LossConfig(r_drop_alpha=4.0), dropout=0.0)(key, 0)
    once, once_sums = text_loss(LossConfig(), dropout=0.0)(key, 0)
    np.testing.assert_allclose(still, once, rtol=1e-5)
    assert float(still_sums.num_tokens) == 2 * float(once_sums.num_tokens)
    strong, sums = text_loss(LossConfig(r_drop_alpha=100.0))(key, 0)
    weak, same_sums = text_loss(LossConfig(r_drop_alpha=1e-6))(key, 0)
    np.testing.assert_allclose(sums.task_nll, same_sums.task_nll, rtol=1e-6)
    assert strong > weak + 0.01
    np.testing.assert_allclose(weak, sums.task_nll.sum() / sums.num_tokens, rtol=1e-5)


def test_evaluation_of_the_loss_has_the_constraint_range_alone():
    options = LossConfig(0.1, 0, (4, VOCAB.num_text), (0.5, 0), (0.5, 0), 0.75, 1.0)
    _, sums = text_loss(options)(None, 9)
    loss, plain = text_loss(LossConfig(constraint_range=(4, VOCAB.num_text)))(None, 0)
    jax.tree.map(np.testing.assert_array_equal, sums, plain)
    assert loss < text_loss(LossConfig())(None, 0)[0]


def test_the_step_counts_its_own_updates():
    config = dataclasses.replace(TEXT, loss=LossConfig(drop_worst=(0.5, 0)))
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    step, state = make_train_step(config, mesh, num_tasks=4), init_state(config, mesh)
    ratios = []
    for data_step in range(2):
        batch = Batches(config).batch(data_step)
        state, metrics = step(state, put_batch(batch._replace(blocks=blocks_of(config, data_step)), mesh))
        ratios.append(float(metrics.group_loss["images_text"] * metrics.task_tokens.sum() / metrics.task_nll.sum()))
    assert ratios[0] == pytest.approx(1.0, rel=1e-5), "nothing is dropped at update 0"
    assert 0.5 < ratios[1] < 0.999, "the mean of the better half"


def test_a_target_outside_the_range_stops_the_run():
    config = dataclasses.replace(TEXT, loss=LossConfig(constraint_range=(10, 20)))
    with pytest.raises(UserError, match=r"block text, target_ids \(loss.constraint_range=\(10, 20\)\): found id \d+ in sequence 0"):
        check_batch(Batches(config).batch(0), config)
    check_batch(Batches(config).batch(0), dataclasses.replace(config, loss=LossConfig(constraint_range=(4, VOCAB.num_text))))


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_length_classes_have_the_loss_of_one_shape(x64: None):
    """A batch whose first and second sequences are short enough for their groups costs the same as at the block's one shape, and has the
    same gradients: without dropout nothing but padding differs."""
    lens = (LengthClass(8, (10, 6), (4, 6)), LengthClass(8, (10,), (6,)))
    classed = dataclasses.replace(BLOCKS[0], rows=16, num_patches=0, classes=lens)
    plain = tuple(dataclasses.replace(BLOCKS[0], name=f"pairs_{place}", num_patches=0) for place in (0, 1))
    blocks = {}
    for place, block in enumerate(plain):
        made = make_block(dataclasses.replace(block, name="x"), np.random.default_rng(place))
        if place == 0:  # cut every sequence to its group
            source, decoder, target = made.source_ids.copy(), made.decoder_ids.copy(), made.target_ids.copy()
            source[1::2, 6:], decoder[0::2, 4:], target[0::2, 4:] = PAD_ID, PAD_ID, PAD_ID
            made = made._replace(source_ids=source, decoder_ids=decoder, target_ids=target)
        blocks[block.name] = made._replace(elements=None)
    losses, grads, positions = [], [], []
    for of_pairs in ((classed,), plain):
        config = dataclasses.replace(CONFIG, data=DataConfig(blocks=of_pairs), precision="f64")
        objective = make_objective(config)
        params, stats = objective.init(jax.random.key(0))

        def loss(params, objective=objective, stats=stats):
            return objective.loss(params, stats, blocks, None, num_tasks=4)[0]

        compiled = jax.jit(jax.value_and_grad(loss), compiler_options={"xla_backend_optimization_level": 0})  # compiles twice as fast
        total, grad = compiled(params)
        losses.append(float(total))
        grads.append(grad)
        positions.append(sum(part.num_positions(16) for part in config.data.row_blocks))
    np.testing.assert_allclose(*losses, rtol=1e-12)
    for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(float(np.abs(a).max()), 1e-3))
    assert positions == [8 * (10 + 4 + 6 + 6) + 16 * 16, 16 * 16 * 2]


def test_groups_of_a_class_train_with_dropout_and_sampled_patches():
    classed = dataclasses.replace(BLOCKS[0], classes=(LengthClass(8, (10, 6), (4, 6)),))
    config = dataclasses.replace(CONFIG, data=DataConfig(blocks=(classed,)), loss=LossConfig(r_drop_alpha=1.0))
    part = config.data.row_blocks[0]
    made = make_block(dataclasses.replace(BLOCKS[0], name=part.name), np.random.default_rng(0))._replace(elements=None)
    objective = make_objective(config)
    params, stats = objective.init(jax.random.key(0))
    total, report = jax.jit(lambda p: objective.loss(p, stats, {part.name: made}, jax.random.key(1), num_tasks=4))(params)
    assert np.isfinite(total) and report.groups["pairs"].num_tokens > 0
