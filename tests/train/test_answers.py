"""Answers behind a prompt: where they lie, what their trie allows, their loss's gradient, and noise in what the decoder reads."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, LossConfig, MeshConfig, RunConfig, VocabConfig
from ofa_jax.models.ofa import NEVER, OFA
from ofa_jax.models.precision import policy
from ofa_jax.parallel.layout import Rows, own_rows
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.answers import ClosedSet, noisy, take_answers
from ofa_jax.train.loss import BlockLoss, block_loss, group_sums
from ofa_jax.train.pretraining import closed_loss
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
    answers = ClosedSet(config)
    found = np.asarray(answers.allowed(jnp.asarray(targets)))
    trie = build_trie(load_tokenizer(VOCAB).encode_batch([f" {label}" for label in LABELS]))
    for row, allowed in zip(targets, found, strict=True):
        length = np.count_nonzero(row != PAD_ID)
        for place in range(length):
            assert answers.ids[allowed[place]].tolist() == trie.allowed(row[:place]), (row, place)
            assert answers.ids[int(answers.columns(row[place]))] == row[place]
    assert np.asarray(answers.columns(jnp.asarray([PAD_ID, 777, int(answers.ids[-1])]))).tolist() == [-1, -1, len(answers.ids) - 1]


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


class Head:
    """The output layer of `OFA` over a matrix [padded V, D]: of all ids, or of some."""

    rows_of, logits_among = OFA.rows_of, OFA.logits_among

    def __init__(self, table: jax.Array):
        self.embedding, self.policy = types.SimpleNamespace(table=table), policy("f64")


def given(targets: np.ndarray, loss: LossConfig) -> dict[str, Any]:
    rows = len(targets)
    return {
        "target_ids": jnp.asarray(targets),
        "confidence": jnp.repeat(jnp.linspace(0.3, 1.0, rows // 2, dtype=jnp.float64), 2),
        "task_ids": jnp.zeros(rows, jnp.int32),
        "num_tasks": 1,
        "vocab_size": VOCAB.size,
        "config": loss,
    }


def masked_whole(hidden: jax.Array, table: jax.Array, answers: ClosedSet, **given: Any) -> BlockLoss:
    """The loss by its definition: logits of all ids, masked by the trie."""
    allowed = jnp.zeros((*given["target_ids"].shape, VOCAB.size), bool).at[..., answers.ids].set(answers.allowed(given["target_ids"]))
    padding = jnp.where(jnp.arange(VOCAB.padded_size) < VOCAB.size, 0.0, NEVER)
    return block_loss(hidden, logits_of=lambda h: h @ table.T + padding, allowed=allowed, **given)


LOSSES = [
    LossConfig(label_smoothing=0.1),
    LossConfig(label_smoothing=0.1, logit_chunk=3, r_drop_alpha=0.5, encouraging_log_end=0.75),
    LossConfig(drop_worst=(0.3, 0)),
]


@pytest.mark.parametrize("loss", LOSSES, ids=("plain", "options", "dropped"))
def test_logits_of_the_set_s_ids_alone_give_loss_and_gradients_of_the_masked_whole(
    config: RunConfig, targets: np.ndarray, loss: LossConfig
) -> None:
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        table = jnp.asarray(draw.normal(size=(VOCAB.padded_size, 4)))
        targets = np.repeat(targets, 2, axis=0)  # every sequence twice, as R-Drop has it
        hidden = jnp.asarray(draw.normal(size=(*targets.shape, 4)))
        answers, terms = ClosedSet(config), given(targets, loss)

        def total(part: BlockLoss) -> tuple[jax.Array, BlockLoss]:
            return group_sums([part], config=loss, step=3).loss, part

        def few(hidden: jax.Array, table: jax.Array) -> Any:
            return total(closed_loss(hidden, Head(table), answers, **terms))

        def whole(hidden: jax.Array, table: jax.Array) -> Any:
            return total(masked_whole(hidden, table, answers, **terms))

        (found, part), grads = jax.jit(jax.value_and_grad(few, argnums=(0, 1), has_aux=True))(hidden, table)
        (expected, whole_part), whole_grads = jax.jit(jax.value_and_grad(whole, argnums=(0, 1), has_aux=True))(hidden, table)
        assert abs(float(expected)) > 0.3 and np.abs(whole_grads[0]).max() > 0.01
        np.testing.assert_allclose(found, expected, rtol=1e-13)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14), part.sums, whole_part.sums)
        for ours, theirs in zip(grads, whole_grads, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_a_target_outside_of_the_set_costs_infinity_without_a_gradient(config: RunConfig, targets: np.ndarray) -> None:
    with jax.enable_x64(True):
        bad = np.where(targets == targets[0, 0], 777, targets)
        table = jnp.asarray(np.random.default_rng(0).normal(size=(VOCAB.padded_size, 4)))
        hidden = jnp.ones((*targets.shape, 4))
        answers, terms = ClosedSet(config), given(bad, LOSSES[0])
        loss, grad = jax.jit(jax.value_and_grad(lambda h: closed_loss(h, Head(table), answers, **terms).sums.loss))(hidden)
        assert np.isinf(loss) and np.isfinite(grad).all() and not np.asarray(grad)[0, 0].any()


def test_devices_that_hold_parts_of_the_vocabulary(config: RunConfig, targets: np.ndarray) -> None:
    with jax.enable_x64(True):
        draw = np.random.default_rng(1)
        rows = np.concatenate([targets] * 2)[:8]
        table, hidden = jnp.asarray(draw.normal(size=(VOCAB.padded_size, 4))), jnp.asarray(draw.normal(size=(*rows.shape, 4)))
        answers, terms = ClosedSet(config), given(rows, LOSSES[0])
        by_row = {name: terms.pop(name) for name in ("target_ids", "confidence", "task_ids")}
        mesh = make_mesh(MeshConfig(fsdp=4), devices=jax.devices()[:4])

        def local(hidden: jax.Array, table: jax.Array, by_row: dict[str, jax.Array]) -> Any:
            def loss(hidden: jax.Array, table: jax.Array) -> jax.Array:
                return closed_loss(hidden, Head(table), answers, **by_row, **terms).sums.loss

            with own_rows(Rows(("fsdp",), 4, 4)):
                value, grads = jax.value_and_grad(loss, argnums=(0, 1))(hidden, table)
            return jax.lax.psum(value, "fsdp"), grads

        split = PartitionSpec("fsdp")
        run = jax.shard_map(local, mesh=mesh, in_specs=(split,) * 3, out_specs=(PartitionSpec(), (split,) * 2), check_vma=False)
        found, grads = jax.jit(run)(hidden, table, by_row)
        whole = jax.value_and_grad(lambda h, t: masked_whole(h, t, answers, **by_row, **terms).sums.loss, argnums=(0, 1))
        expected, whole_grads = jax.jit(whole)(hidden, table)
        np.testing.assert_allclose(found, expected, rtol=1e-13)
        for ours, theirs in zip(grads, whole_grads, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_the_masked_loss_has_the_gradient_of_finite_differences(config: RunConfig, targets: np.ndarray) -> None:
    with jax.enable_x64(True):
        draw = np.random.default_rng(0)
        table = jnp.asarray(draw.normal(size=(VOCAB.padded_size, 4)))
        hidden = jnp.asarray(draw.normal(size=(*targets.shape, 4)))
        answers, terms = ClosedSet(config), given(targets, LOSSES[0])

        def loss(hidden: jax.Array) -> jax.Array:
            return closed_loss(hidden, Head(table), answers, **terms).sums.loss

        gradient = jax.jit(jax.grad(loss))(hidden)
        for _ in range(8):
            way = jnp.asarray(draw.normal(size=hidden.shape))
            step = 1e-5
            slope = (jax.jit(loss)(hidden + step * way) - jax.jit(loss)(hidden - step * way)) / (2 * step)
            np.testing.assert_allclose(jnp.sum(gradient * way), slope, rtol=1e-7)
        first = np.asarray(gradient)[:, 0]
        assert np.abs(first[:-1]).max(1).min() > 0 and not np.asarray(gradient)[-1].any()


def test_the_longest_class_of_imagenet_fits_its_recipe() -> None:
    """With EOS behind it: cut, it would be none of the answers, and the run would stop."""
    name = " platypus, duckbill, duckbilled platypus, duck-billed platypus, Ornithorhynchus anatinus"
    recipe = read_config("configs/finetune/imagenet.py")
    assert isinstance(recipe, RunConfig)
    assert recipe.data.blocks[0].target_len >= len(load_tokenizer(VOCAB).encode(name)) + 1


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
