"""Answers behind a prompt: where they lie, what their trie allows, their loss's gradient, and noise in what the decoder reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, LossConfig, RunConfig, VocabConfig
from ofa_jax.train.answers import ClosedSet, noisy, take_answers
from ofa_jax.train.loss import block_loss
from ofa_jax.vocab.tokenizer import load_tokenizer
from ofa_jax.vocab.trie import build_trie

LABELS = ("red", "red fox", "dog", "a very long answer", "1")
VOCAB = VocabConfig(tokenizer="gpt2_bpe")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = tmp_path_factory.mktemp("answers") / "answers.txt"
    path.write_text("\n".join(LABELS) + "\n")
    config = read_config("configs/finetune/vqa_v2.py:size=tiny")
    assert isinstance(config, RunConfig)
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, answers=str(path)), vocab=VOCAB)


@pytest.fixture(scope="module")
def targets() -> np.ndarray:
    """Every answer with its EOS and PAD behind, and a row of padding."""
    rows = [[*ids, EOS_ID] for ids in load_tokenizer(VOCAB).encode_batch([f" {label}" for label in LABELS])] + [[]]
    out = np.full((len(rows), 8), PAD_ID, np.int32)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return out


def test_what_the_trie_allows_at_each_target(config: RunConfig, targets: np.ndarray) -> None:
    found = np.asarray(ClosedSet(config).allowed(jnp.asarray(targets), size=VOCAB.size))
    trie = build_trie(load_tokenizer(VOCAB).encode_batch([f" {label}" for label in LABELS]))
    for row, allowed in zip(targets, found, strict=True):
        length = np.count_nonzero(row != PAD_ID)
        for place in range(length):
            assert np.flatnonzero(allowed[place]).tolist() == trie.allowed(row[:place]), (row, place)


def test_a_target_that_is_no_answer_is_named(config: RunConfig, targets: np.ndarray) -> None:
    answers = ClosedSet(config)
    answers.check(targets, where="batch 3")
    answers.check(np.where(targets == EOS_ID, PAD_ID, targets), where="batch 3")  # of a prompt that ends in EOS
    bad = targets.copy()
    bad[2, 0] = 777
    with pytest.raises(UserError, match=r"batch 3: found the target \[777\] in sequence 2, expected one of the 5 answers of loss.answers="):
        answers.check(bad, where="batch 3")
    with pytest.raises(ConfigError, match="loss.answers: found no file nowhere.txt, expected one label a line, or task"):
        ClosedSet(dataclasses.replace(config, loss=LossConfig(answers="nowhere.txt")))


def test_two_classes_of_one_name_are_one_line(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("crane\nmaillot\nmaillot, tank suit\ncrane\n")
    named = dataclasses.replace(config, loss=LossConfig(answers=str(path)))
    with pytest.raises(ConfigError, match=r"loss.answers: .*answers.txt: found 'crane' more than once, expected labels that differ"):
        ClosedSet(named)
    path.write_text("crane\nmaillot\nmaillot, tank suit\n")
    targets = np.array([[*ids, EOS_ID] for ids in load_tokenizer(VOCAB).encode_batch([" crane"])], np.int32)
    ClosedSet(named).check(targets, where="batch 1")


def test_the_masked_loss_has_the_gradient_of_finite_differences(config: RunConfig, targets: np.ndarray) -> None:
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        table = jnp.asarray(draw.normal(size=(VOCAB.padded_size, 4)))
        hidden = jnp.asarray(draw.normal(size=(*targets.shape, 4)))
        answers = ClosedSet(config)

        def loss(hidden: jax.Array) -> jax.Array:
            return block_loss(
                hidden,
                logits_of=lambda h: h @ table.T,
                target_ids=jnp.asarray(targets),
                confidence=jnp.asarray(draw.uniform(0.3, 1.0, len(targets)) * 0 + 0.7),
                task_ids=jnp.zeros(len(targets), jnp.int32),
                num_tasks=1,
                vocab_size=VOCAB.size,
                config=LossConfig(label_smoothing=0.1),
                allowed=answers.allowed(jnp.asarray(targets), size=VOCAB.size),
            ).sums.loss

        gradient = jax.jit(jax.grad(loss))(hidden)
        for _ in range(8):
            way = jnp.asarray(draw.normal(size=hidden.shape))
            step = 1e-5
            slope = (jax.jit(loss)(hidden + step * way) - jax.jit(loss)(hidden - step * way)) / (2 * step)
            np.testing.assert_allclose(jnp.sum(gradient * way), slope, rtol=1e-7)
        first = np.asarray(gradient)[:, 0]
        assert np.abs(first[:-1]).max(1).min() > 0 and not np.asarray(gradient)[-1].any()


def test_answers_are_taken_from_behind_their_prompts() -> None:
    targets = np.array([[1, 1, 7, 2, 1], [9, 2, 1, 1, 1], [1, 1, 1, 1, 8], [1, 1, 1, 1, 1]], np.int32)
    hidden = jnp.arange(20.0).reshape(4, 5, 1)
    taken, ids = take_answers(hidden, jnp.asarray(targets), length=3)
    np.testing.assert_array_equal(ids, [[7, 2, 1], [9, 2, 1], [8, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(taken[:3, 0, 0], [2, 5, 14])
    np.testing.assert_array_equal(taken[0, :, 0], [2, 3, 4])


def test_noise_spares_bos_and_padding() -> None:
    ids = jnp.asarray(np.tile(np.array([BOS_ID, *[5] * 400, *[PAD_ID] * 20], np.int32), (8, 1)))
    keys = jax.random.split(jax.random.key(0), 8)
    found = np.asarray(noisy(ids, keys, share=0.2, num_text=1_000))
    assert (found[:, 0] == BOS_ID).all() and (found[:, -20:] == PAD_ID).all()
    changed = found[:, 1:401] != 5
    assert abs(changed.mean() - 0.2) < 0.03 and found[:, 1:401].min() >= 4 and found.max() < 1_000
    assert len({tuple(row) for row in found}) == 8
    np.testing.assert_array_equal(found[3], noisy(ids[3:4], keys[3:4], share=0.2, num_text=1_000)[0])
