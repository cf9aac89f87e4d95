"""The objective of the image front: where words are, what a row costs, and that the front it makes is the model's own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_case import CONFIG

from ofa_jax.config.schema import EOS_ID, PAD_ID, BlockConfig, DataConfig, SourceConfig, VocabConfig
from ofa_jax.data.batch import Block
from ofa_jax.models.resnet import init_stats
from ofa_jax.train.objective import make_objective
from ofa_jax.train.picture_words import bag_of_words_loss, boxes_of_tokens, located_words_loss

VOCAB = VocabConfig(tokenizer="sentencepiece", num_text=20, num_codes=4, num_bins=5, canvas_px=32, pad_multiple=8)
BIN = VOCAB.first_bin_id  # bins are 0, 8, 16, 24 and 32 px
# "cat" (6 7) in the left upper quarter, "dog" (8) in the right half.
TARGET = [BIN + 0, BIN + 0, BIN + 2, BIN + 2, 6, 7, BIN + 2, BIN + 0, BIN + 4, BIN + 4, 8, EOS_ID, PAD_ID]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def test_every_word_has_the_box_before_it():
    boxes = np.asarray(boxes_of_tokens(jnp.asarray([TARGET]), VOCAB))[0]
    np.testing.assert_allclose(boxes[4], [0, 0, 16, 16])
    np.testing.assert_allclose(boxes[5], [0, 0, 16, 16])
    np.testing.assert_allclose(boxes[10], [16, 0, 32, 32])


def test_a_patch_is_to_name_the_words_of_its_boxes_or_nothing():
    """2x2 patches of 16 px: upper left cat, both right ones dog, lower left nothing."""
    scores = np.random.default_rng(0).normal(size=(2, 4, VOCAB.num_text))
    log_probs = log_softmax(scores)
    cat = -(log_probs[0, 0, 6] + log_probs[0, 0, 7]) / 2
    named = np.mean([cat, -log_probs[0, 1, 8], -log_probs[0, 3, 8]])
    empty = [EOS_ID] + [PAD_ID] * (len(TARGET) - 1)
    losses = located_words_loss(jnp.asarray(scores), jnp.asarray([TARGET, empty]), VOCAB, image_px=32)
    expected = [0.5 * named - 0.5 * log_probs[0, 2, EOS_ID], -0.5 * log_probs[1, :, EOS_ID].mean()]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_overlapping_boxes_share_a_patch():
    target = [BIN, BIN, BIN + 4, BIN + 4, 6, BIN, BIN, BIN + 4, BIN + 4, 8, EOS_ID]
    scores = np.random.default_rng(1).normal(size=(1, 1, VOCAB.num_text))
    log_probs = log_softmax(scores)
    loss = located_words_loss(jnp.asarray(scores), jnp.asarray([target]), VOCAB, image_px=32)
    np.testing.assert_allclose(loss, [-0.5 * (log_probs[0, 0, 6] + log_probs[0, 0, 8]) / 2], rtol=1e-5)


def test_words_without_a_place_are_somewhere_and_count_once():
    scores = np.random.default_rng(2).normal(size=(2, 4, VOCAB.num_text))
    log_probs = log_softmax(np.log(np.exp(scores).sum(1)))
    targets = [[6, EOS_ID, 9, 6, PAD_ID], [EOS_ID, PAD_ID, VOCAB.mask_id, BIN, 3]]
    losses = bag_of_words_loss(jnp.asarray(scores), jnp.asarray(targets), VOCAB)
    np.testing.assert_allclose(losses, [-(log_probs[0, 6] + log_probs[0, 9]) / 2, 0.0], rtol=1e-5)


BLOCKS = (
    BlockConfig("named", "pairs", 2, 6, 4, (SourceConfig("d", "caption"),), image_px=32),
    BlockConfig("boxes", "images", 2, 6, len(TARGET), (SourceConfig("d", "detection"),), image_px=32),
)
RUN = dataclasses.replace(CONFIG, objective="picture_words", vocab=VOCAB, data=DataConfig(blocks=BLOCKS))


def block(config: BlockConfig, targets: list[list[int]], tasks: list[int]) -> Block:
    rows, count = config.rows, len(targets)
    pixels = np.random.default_rng(3).integers(0, 256, (rows, 32, 32, 3), np.uint8)
    ids = np.asarray([target + [PAD_ID] * (config.target_len - len(target)) for target in targets], np.int32)
    source = np.full((count, config.source_len), PAD_ID, np.int32)
    return Block(
        pixels, np.ones(rows, bool), np.zeros(rows, bool), source, ids, ids, np.ones(count, np.float32), np.zeros(count, bool),
        np.asarray(tasks, np.int32), np.arange(rows),
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned():
    """(parameters, statistics, losses, sums of the first step) of 60 plain gradient steps on one batch."""
    objective = make_objective(RUN)
    params, stats = objective.init(jax.random.key(0))
    blocks = {
        "named": block(BLOCKS[0], [[6, 7, EOS_ID], [9, EOS_ID], [8, EOS_ID], [9, EOS_ID]], [0, 1, 0, 1]),
        "boxes": block(BLOCKS[1], [TARGET, TARGET], [2, -1]),
    }

    @jax.jit
    def step(params, stats):
        (loss, (stats, sums, _)), grads = jax.value_and_grad(
            lambda p: objective.loss(p, stats, blocks, jax.random.key(1), num_tasks=4), has_aux=True
        )(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), stats, loss, sums

    losses, first = [], None
    for _ in range(60):
        params, stats, loss, sums = step(params, stats)
        first = first or sums
        losses.append(float(loss))
    return params, stats, losses, first


def test_a_row_is_one_token_of_its_first_task_and_padding_counts_nowhere(learned):
    sums = learned[3]
    assert float(sums["pairs"].num_tokens) == 2 and float(sums["images_text"].num_tokens) == 1
    np.testing.assert_array_equal(sums["pairs"].task_tokens, [2, 0, 0, 0])
    np.testing.assert_array_equal(sums["images_text"].task_tokens, [0, 0, 1, 0])
    np.testing.assert_allclose(sums["pairs"].task_nll[0], sums["pairs"].loss, rtol=1e-6)


def test_it_learns_to_name_and_moves_the_statistics(learned):
    _, stats, losses, _ = learned
    assert losses[-1] < 0.5 * losses[0]
    untouched = init_stats(RUN.model.resnet, np.float32)
    assert not any(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(untouched), strict=True))


def test_its_front_is_the_whole_models_front():
    def shapes(objective: str) -> dict:
        config = dataclasses.replace(RUN, objective=objective)
        params, stats = jax.eval_shape(make_objective(config).init, jax.random.key(0))
        return {jax.tree_util.keystr(p): leaf.shape for p, leaf in jax.tree_util.tree_flatten_with_path((params["resnet"], stats))[0]}

    assert shapes("picture_words") == shapes("ofa")
