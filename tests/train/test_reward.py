"""Self-critical training: baselines, the blocks of hypotheses, their gradient beside a plain one, rewards, and a reward that rises."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.check import problems
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, BlockConfig, DataConfig, LossConfig, RewardConfig, SourceConfig, VocabConfig
from ofa_jax.data.batch import Batch, Block
from ofa_jax.eval.codec import PatchCodec
from ofa_jax.eval.rewards import CiderReward, FunctionReward, PictureReward
from ofa_jax.metrics.cider import cider
from ofa_jax.metrics.document_frequencies import document_frequencies, ended
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.pretraining import Pretraining
from ofa_jax.train.reward import SelfCritical, advantages, with_hypotheses
from ofa_jax.train.state import init_state
from ofa_jax.train.step import put_batch
from ofa_jax.vocab.tokenizer import load_tokenizer
from tests.e2e.processes import ROOT, run
from tests.train.train_case import CONFIG

SAMPLES, ROWS = 3, 4
BLOCK = BlockConfig("captions", "pairs", ROWS, 6, 9, (SourceConfig("d", "short_caption"),), image_px=32, pairs_per_image=SAMPLES)
RUN = dataclasses.replace(
    CONFIG,
    data=DataConfig(blocks=(BLOCK,)),
    loss=LossConfig(),
    model=dataclasses.replace(CONFIG.model, dropout=0.0),
    reward=(RewardConfig(reward="none", max_len=6, no_repeat_ngram=2),),
    precision="f64",
)


def host_block() -> Block:
    draw = np.random.default_rng(0)
    count = ROWS * SAMPLES
    source = np.tile(np.array([BOS_ID, 7, 8, EOS_ID, PAD_ID, PAD_ID], np.int32), (count, 1))
    targets = np.full((count, 9), PAD_ID, np.int32)
    targets[:, :3] = [5, 6, EOS_ID]
    return Block(
        draw.integers(0, 256, (ROWS, 32, 32, 3), np.uint8), np.ones(ROWS, bool), np.zeros(ROWS, bool), source, source[:, :1].repeat(9, 1),
        targets, np.ones(count, np.float32), np.zeros(count, bool), np.zeros(count, np.int32), np.arange(ROWS),
    )  # fmt: skip


def test_each_is_compared_with_the_mean_of_the_others() -> None:
    rewards = np.array([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0], [5.0, 1.0, 9.0]])
    valid = np.array([[True] * 3, [True] * 3, [True, True, False]])
    np.testing.assert_allclose(advantages(rewards, valid), [[-3, -1.5, 4.5], [0, 0, 0], [4, -4, 0]])
    np.testing.assert_array_equal(advantages(rewards, np.array([[True, False, False]] * 3)), 0)


def test_hypotheses_take_the_places_of_targets() -> None:
    hypotheses = np.full((ROWS, SAMPLES, 4), PAD_ID, np.int32)
    hypotheses[0, 0] = [9, 8, 7, EOS_ID]
    hypotheses[0, 1, :2] = [9, EOS_ID]
    found = with_hypotheses(host_block(), hypotheses, np.arange(12.0).reshape(ROWS, SAMPLES))
    assert found.decoder_ids[:2].tolist() == [[BOS_ID, 9, 8, 7, 1, 1, 1, 1, 1], [BOS_ID, 9, 1, 1, 1, 1, 1, 1, 1]]
    assert found.target_ids[:3].tolist() == [[9, 8, 7, EOS_ID, 1, 1, 1, 1, 1], [9, EOS_ID, 1, 1, 1, 1, 1, 1, 1], [1] * 9]
    assert found.confidence.tolist() == list(range(12))
    with pytest.raises(ValueError, match="expected 12 of at most 9 tokens"):
        with_hypotheses(host_block(), hypotheses[:2], np.zeros((2, SAMPLES)))


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_the_gradient_is_that_of_a_plain_reference(method: str) -> None:
    """Sum of -log p(token) times the advantage over the number of tokens, with the gradient of JAX's own log-softmax of whole logits."""
    config = dataclasses.replace(RUN, reward=(dataclasses.replace(RUN.reward[0], method=method),))
    seen = []

    def rewarder(hypotheses: np.ndarray, block: Block) -> np.ndarray:
        rewards = (hypotheses % 7).sum(-1).astype(np.float64)
        seen.append((hypotheses, rewards, block))
        return rewards

    with jax.enable_x64(True):
        mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
        objective, state = Pretraining(config), init_state(config, mesh)
        critical = SelfCritical(config, mesh, objective.graphdef, rewarder)
        batch = Batch(5, {"captions": host_block()}, ())
        blocks, told = critical(state, batch, put_batch(batch, mesh))
        critical.close()
        hypotheses, rewards = np.concatenate([s[0] for s in seen]), np.concatenate([s[1] for s in seen])
        assert len(seen) == 2 and hypotheses.shape[:2] == (ROWS, SAMPLES)  # in halves, each beside its own pictures
        np.testing.assert_array_equal(np.concatenate([s[2].images for s in seen]), host_block().images)
        assert told["reward/mean"] == pytest.approx(rewards.mean())
        assert len({tuple(h) for h in hypotheses[0]}) > 1
        key = jax.random.key(3)

        def ours(params):
            return objective.loss(params, state.stats, blocks, key, num_tasks=1)[0]

        advantage = (rewards - (rewards.sum(1, keepdims=True) - rewards) / (SAMPLES - 1)).reshape(-1)
        ids = np.asarray(hypotheses).reshape(ROWS * SAMPLES, -1)
        before = np.concatenate([np.full((len(ids), 1), BOS_ID), np.where(ids == EOS_ID, PAD_ID, ids)[:, :-1]], 1)

        def plain(params):
            model = nnx.merge(objective.graphdef, params)
            images = host_block().images
            features = model.embed_images(jnp.asarray(images), jnp.zeros(ROWS, bool), stats=state.stats, train=True, key=None)[0]
            encoded = model.encode(
                jnp.asarray(host_block().source_ids), features=jnp.repeat(features, SAMPLES, 0), image_mask=None, key=None
            )
            logits = model.logits(model.decode(encoded, jnp.asarray(before), jnp.zeros(len(ids), bool), key=None, code_rows="none"))
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(ids)[..., None], -1)[..., 0]
            return -jnp.sum(jnp.where(ids != PAD_ID, chosen * advantage[:, None], 0.0)) / (ids != PAD_ID).sum()

        (value, gradient), (expected, reference) = (jax.jit(jax.value_and_grad(f))(state.params) for f in (ours, plain))
        np.testing.assert_allclose(value, expected, rtol=1e-7)
        for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(reference), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-7 * max(np.abs(other).max(), 1e-3))


def test_pictures_of_a_caption_are_drawn_and_judged(tmp_path: Path) -> None:
    """A reward for the code 3: all codes and EOS of each drawing are targets, at their places in the picture, and its loss is the sum of
    their -log p times the advantages."""
    path = tmp_path / "judge.py"
    path.write_text(
        "def grey(instruction, picture, pictures, captions):\n"
        "    assert picture is None and captions == ['a dog'] and instruction.endswith('caption: a dog')\n"
        "    return [(one == 3).mean() for one in pictures]\n"
    )
    vocab = VocabConfig()
    block = BlockConfig("paintings", "text", ROWS, 24, 17, (SourceConfig("d", "painting"),), pairs_per_image=SAMPLES)
    model = dataclasses.replace(RUN.model, code_image_px=16, code_stride=4, code_filler_id=16)
    reward = RewardConfig(reward=f"{path}:grey", method="sample", top_k=5)
    config = dataclasses.replace(RUN, data=DataConfig(blocks=(block,)), model=model, reward=(reward,), vocab=vocab)
    assert not [line for line in problems(config) if "reward" in line or "pairs_per_image" in line]
    tokenizer, count = load_tokenizer(vocab), ROWS * SAMPLES
    asked = [BOS_ID, *tokenizer.encode(" what is the complete image? caption: a dog"), EOS_ID]
    source = np.tile(np.array(asked + [PAD_ID] * (24 - len(asked)), np.int32), (count, 1))
    empty = np.full((count, 17), PAD_ID, np.int32)
    given = Block(None, None, None, source, empty, empty, np.ones(count, np.float32), np.ones(count, bool), np.zeros(count, np.int32),
                  np.arange(ROWS))  # fmt: skip
    shades = PatchCodec(np.arange(8_192).astype(np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3))
    judge = PictureReward(tokenizer, reward.reward, shades, first_code_id=vocab.first_code_id)
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    with jax.enable_x64(True):
        objective, state = Pretraining(config), init_state(config, mesh)
        critical = SelfCritical(config, mesh, objective.graphdef, judge)
        batch = Batch(5, {"paintings": given}, ())
        blocks, told = critical(state, batch, put_batch(batch, mesh))
        critical.close()
        drawn = np.asarray(blocks["paintings"].target_ids)
        codes = drawn[:, :-1] - vocab.first_code_id
        assert (drawn[:, -1] == EOS_ID).all() and codes.min() >= 0 and codes.max() < vocab.num_codes and len(np.unique(drawn, axis=0)) > 3
        rewards = (codes % 256 == 3).mean(1).reshape(ROWS, SAMPLES)
        assert told["reward/mean"] == pytest.approx(rewards.mean())
        weights = advantages(rewards, np.ones_like(rewards, bool))
        np.testing.assert_allclose(blocks["paintings"].confidence, weights.reshape(-1), rtol=1e-6)
        model = nnx.merge(objective.graphdef, state.params)
        mask = jnp.ones(count, bool)
        before = jnp.asarray(np.concatenate([np.full((count, 1), BOS_ID), drawn[:, :-1]], 1))
        encoded = model.encode(jnp.asarray(source), features=None, image_mask=None, key=None)
        logits = jax.nn.log_softmax(model.logits(model.decode(encoded, before, mask, key=None, code_rows="all")))
        chosen = jnp.take_along_axis(logits, jnp.asarray(drawn)[..., None], -1)[..., 0]
        expected = -jnp.sum(chosen * weights.reshape(-1, 1)) / drawn.size
        found = objective.loss(state.params, state.stats, blocks, jax.random.key(3), num_tasks=1)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_rewards_of_texts() -> None:
    tokenizer = load_tokenizer(VocabConfig())
    texts = [" a red dog", " a cat", " a red dog", " the sea", " a boat", " the sea"]
    written = [" a red dog", " dog", " a", " sea", " the sea", " boats"]

    def rows(lines: list[str]) -> np.ndarray:
        out = np.full((len(lines), 9), PAD_ID, np.int32)
        for row, ids in zip(out, tokenizer.encode_batch(lines), strict=True):
            row[: len(ids) + 1] = [*ids, EOS_ID]
        return out

    block = host_block()._replace(target_ids=rows(texts), source_ids=host_block().source_ids[:6], images=host_block().images[:2])
    references = [["a red dog", "a cat"], ["the sea", "a boat"]]
    frequencies = document_frequencies([[ended(text) for text in row] for row in references])
    found = CiderReward(tokenizer, frequencies)(rows(written).reshape(2, 3, 9), block)
    said = [ended(text.strip()) for text in written]
    whole = [[ended(text) for text in references[k // 3]] for k in range(6)]
    np.testing.assert_allclose(found.reshape(-1), cider(said, whole, frequencies=frequencies).scores)
    assert found[0].argmax() == 0 and found[1].argmax() == 1


def test_a_function_that_gives_no_numbers_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def bad(instruction, picture, texts, references):\n    return [float('nan')] * len(texts)\n")
    with pytest.raises(ConfigError, match=r"mine.py:bad: found \[nan, nan, nan\] for .*, expected 3 finite numbers"):
        FunctionReward(load_tokenizer(VocabConfig()), f"{path}:bad")(np.full((ROWS, SAMPLES, 4), EOS_ID, np.int32), host_block())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"reward": RUN.reward * 2}, "reward: found 2 of them, expected one or none"),
        ({"reward": (RewardConfig(),)}, "reward.frequencies: found none for cider"),
        ({"loss": LossConfig(label_smoothing=0.1)}, "loss.label_smoothing: found 0.1 with a reward, expected 0"),
        ({"loss": LossConfig(drop_worst=(0.2, 5))}, "loss.drop_worst: found (0.2, 5) with a reward, whose losses may be negative"),
        ({"loss": LossConfig(answers="task")}, "loss.answers: found task with a reward, expected none"),
        ({"data": DataConfig(blocks=(dataclasses.replace(BLOCK, pairs_per_image=1),))}, "pairs_per_image: found 1, expected 2 or more"),
        (
            {"data": DataConfig(blocks=(dataclasses.replace(BLOCK, target_len=6),))},
            "target_len: found 6, expected more than reward.max_len=6",
        ),
    ],
)
def test_what_does_not_go_together(change: dict, sentence: str) -> None:
    assert any(sentence in problem for problem in problems(dataclasses.replace(RUN, **change)))


@pytest.mark.full
def test_a_reward_rises(tmp_path: Path) -> None:
    config = read_config(f"{ROOT}/configs/finetune/coco_caption_reward.py:debug")
    assert config.reward and config.data.blocks[0].pairs_per_image == 5
    (tmp_path / "mine.py").write_text(
        "def short(instruction, picture, texts, references):\n"
        "    assert picture.shape == (64, 64, 3) and references, references\n"
        "    return [-len(text) for text in texts]\n"
    )
    flags = ["--config.eval.every_steps=0", f"--config.reward.0.reward={tmp_path}/mine.py:short", "--config.reward.0.method=sample"]
    flags += ["--config.optimizer.learning_rate=3e-3", "--config.optimizer.frozen=()", f"--config.workdir={tmp_path}/run"]
    command = [sys.executable, str(ROOT / "launch" / "train.py"), f"--config={ROOT}/configs/finetune/coco_caption_reward.py:debug,steps=40"]
    run([*command, *flags], tmp_path)
    rewards = [json.loads(line).get("reward/mean") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = np.array([reward for reward in rewards if reward is not None])
    assert len(found) == 40 and found[-10:].mean() > found[:10].mean() + 8, found
