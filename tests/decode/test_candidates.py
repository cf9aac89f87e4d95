"""Scores of closed sets against scoring every answer alone with the plain forward pass, and against beam search within the set."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, ResNetConfig, VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.decode.beam import beam_search
from ofa_jax.decode.candidates import candidates, score_candidates
from ofa_jax.decode.constraints import Members
from ofa_jax.decode.rules import DecodeConfig
from ofa_jax.models import ofa
from ofa_jax.vocab.trie import build_trie

CONFIG = dataclasses.replace(
    SIZES["nano"], width=16, ffn_width=24, num_heads=2, resnet=ResNetConfig(blocks=(1, 1, 1), base_width=2, stem_pool=False),
    image_bucket_size=8, code_filler_id=64, code_image_px=16, init_std=0.5,
)  # fmt: skip
VOCAB = VocabConfig(num_text=40, num_codes=16, num_bins=8, pad_multiple=32)
ANSWERS = [[5], [5, 6], [5, 6, 7], [8, 9], [8, 9, 10, 11], [12], [], [5, 6], [9, 8, 8], [30, 31, 32]]
PROMPT = np.array([[20, 21, 22, 23], [24, PAD_ID, PAD_ID, PAD_ID], [PAD_ID] * 4], np.int32)


@pytest.fixture(scope="module", params=["plain", pytest.param("light", marks=pytest.mark.full)])
def model(request):
    light = {"adapter_width": 3, "prompt_lens": (2, 3), "layers": "scan"} if request.param == "light" else {}
    return nnx.merge(*ofa.create(dataclasses.replace(CONFIG, **light), VOCAB, jax.random.key(0)))


@pytest.fixture(scope="module")
def encoded(model):
    draw = np.random.default_rng(0)
    source_ids = draw.integers(4, 60, (3, 6)).astype(np.int32)
    source_ids[2, 3:] = PAD_ID
    features = jnp.asarray(draw.normal(size=(3, 16, 32)), jnp.float32)
    return jax.jit(lambda f: model.encode(source_ids, f))(features)


def alone(model, encoded, answers, prompt_ids):
    """Every answer by itself, as the official evaluation: masks by the trie before the softmax, a sum over the answer and EOS."""
    trie, length = build_trie(answers), 12
    forward = jax.jit(lambda ids: model.logits(model.decode(encoded, ids)))
    found = np.zeros((3, len(answers)))
    for column, answer in enumerate(answers):
        ids = np.full((3, length), PAD_ID, np.int32)
        prompts = [[BOS_ID, *(t for t in row if t != PAD_ID)] for row in prompt_ids]
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt) + len(answer)] = [*prompt, *answer]
        logits = np.asarray(forward(ids), np.float64)
        for row, prompt in enumerate(prompts):
            for k, token in enumerate([*answer, EOS_ID]):
                allowed = trie.allowed(answer[:k])
                scores = logits[row, len(prompt) - 1 + k, allowed]
                found[row, column] += scores[allowed.index(token)] - np.log(np.exp(scores).sum())
    return found


@pytest.mark.parametrize("prompt_ids", [None, PROMPT], ids=["bos", "prompt"])
@pytest.mark.parametrize("max_nodes", [1_024, 6])
def test_scores_are_those_of_each_answer_alone(model, encoded, prompt_ids, max_nodes):
    answers = candidates(ANSWERS, max_nodes=max_nodes)
    assert answers.num == len(ANSWERS) and (answers.tokens.shape[0] > 1) == (max_nodes == 6)
    found = jax.jit(score_candidates)(model, encoded, answers, prompt_ids=prompt_ids)
    expected = alone(model, encoded, ANSWERS, np.zeros((3, 0), np.int32) if prompt_ids is None else prompt_ids)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_scores_do_not_depend_on_how_many_edges_are_formed_at_once(model, encoded, monkeypatch):
    whole = score_candidates(model, encoded, candidates(ANSWERS))
    for numbers in (1, 5 * 3 * CONFIG.width):  # one edge at a time, five
        monkeypatch.setattr("ofa_jax.decode.candidates.GATHERED", numbers)
        np.testing.assert_allclose(score_candidates(model, encoded, candidates(ANSWERS)), whole, atol=1e-5)


def test_beam_search_within_the_set_finds_the_same_order(model, encoded):
    members = [list(ids) for ids in {tuple(ids) for ids in ANSWERS}]
    config = DecodeConfig(beam=len(members), max_len=10, min_len=0, normalise=False)
    constraint = Members.of(build_trie(members))
    hypotheses = jax.jit(lambda e, p: beam_search(model, e, None, config=config, prefix_ids=p, constraint=constraint))(encoded, PROMPT)
    scores = np.asarray(jax.jit(score_candidates)(model, encoded, candidates(members), prompt_ids=PROMPT))
    for row, prompt_len in enumerate((4, 1, 0)):
        best = int(np.argmax(scores[row]))
        length = int(hypotheses.lengths[row, 0])
        assert hypotheses.sequences[row, 0, prompt_len : length - 1].tolist() == members[best]


def test_a_whole_vocabulary_of_single_tokens_is_its_softmax(model, encoded):
    answers = [[t] for t in range(4, 64)]
    found = jax.jit(score_candidates)(model, encoded, candidates(answers))
    np.testing.assert_allclose(np.exp(np.asarray(found, np.float64)).sum(1), 1, rtol=1e-5)


def test_what_cannot_be_scored_is_named(model, encoded):
    with pytest.raises(ValueError, match="members: found none"):
        candidates([])
    with pytest.raises(ValueError, match="members: found one of 7 tokens, expected fewer than max_nodes = 7"):
        candidates([[5] * 7], max_nodes=7)
    with pytest.raises(ValueError, match=r"prompt_ids: found shape \(2, 4\), expected \[3, tokens\]"):
        score_candidates(model, encoded, candidates([[5]]), prompt_ids=PROMPT[:2])
    with pytest.raises(ValueError, match="expected at most"):
        score_candidates(model, encoded, candidates([[5] * CONFIG.num_target_positions], max_nodes=2_000))
