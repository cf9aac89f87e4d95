"""Sampling: the distribution of draws, the rules it shares with beam search, and its keys."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, ResNetConfig, VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.decode.constraints import IdRange, Members
from ofa_jax.decode.rules import DecodeConfig
from ofa_jax.decode.sample import draw_token, sample
from ofa_jax.decode.search import greedy
from ofa_jax.models import ofa
from ofa_jax.models.encoder import Encoded
from ofa_jax.vocab.trie import build_trie

CONFIG = dataclasses.replace(
    SIZES["nano"], width=16, ffn_width=24, num_heads=2, resnet=ResNetConfig(blocks=(1, 1, 1), base_width=2, stem_pool=False),
    image_bucket_size=8, code_filler_id=64, code_image_px=16, init_std=0.5,
)  # fmt: skip
VOCAB = VocabConfig(num_text=40, num_codes=16, num_bins=8, pad_multiple=48)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def model():
    return nnx.merge(*ofa.create(CONFIG, VOCAB, jax.random.key(0)))


@pytest.fixture(scope="module")
def encoded(model):
    source_ids = np.random.default_rng(0).integers(4, 60, (3, 6)).astype(np.int32)
    return jax.jit(lambda ids: model.encode(ids))(source_ids)


def draw(model, encoded, key=KEY, mask=None, **options):
    return jax.device_get(jax.jit(lambda e, key: sample(model, e, mask, key, **options))(encoded, key))


PROBS = np.array([0.05, 0.3, 0.0, 0.4, 0.05, 0.2])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 3, 4, 5]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 100}, [0, 1, 3, 4, 5]),
        ({"top_p": 0.4}, [3]),
        ({"top_p": 0.65}, [1, 3]),
        ({"top_p": 0.75}, [1, 3, 5]),
        ({"top_p": 0.75, "top_k": 1}, [1, 3, 5]),
        ({"top_p": 1.0}, [0, 1, 3, 4, 5]),
    ],
)
def test_draws_follow_the_cut_distribution(options, kept):
    options = {"top_k": 0, "top_p": 0.0, **options}
    log_probs, num = jnp.log(jnp.asarray(PROBS, jnp.float32)), 4000
    if options["top_p"] == 0.4:
        log_probs = log_probs.at[3].add(1e-3)  # clear of the edge
    tokens = jax.jit(jax.vmap(lambda key: draw_token(key, log_probs, **options)))(jax.random.split(KEY, num))
    expected = np.where(np.isin(np.arange(6), kept), PROBS, 0)
    expected /= expected.sum()
    found = np.bincount(tokens, minlength=6) / num
    assert (found[expected == 0] == 0).all()
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(0.25 / num))


def test_one_likeliest_token_is_greedy(model, encoded):
    expected = jax.jit(lambda e: greedy(model, e, None, max_len=6, min_len=1))(encoded)
    found = draw(model, encoded, config=DecodeConfig(beam=3, max_len=6), top_k=1)
    for k in range(3):
        np.testing.assert_array_equal(found.sequences[:, k, :6], expected)


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.8}, {}], ids=str)
def test_scores_are_the_models_log_probabilities(model, encoded, options):
    """Of the whole vocabulary, not of the cut one; hypotheses are sorted and beams never mix."""
    config = DecodeConfig(beam=4, max_len=5, temperature=0.8, lenpen=0.7)
    found = draw(model, encoded, config=config, **options)
    forward = jax.jit(lambda ids: jax.nn.log_softmax(model.logits(model.decode(encoded, ids)) / 0.8))
    for k in range(4):
        ids = np.concatenate([np.full((3, 1), BOS_ID, np.int32), found.sequences[:, k]], 1)
        log_probs = np.asarray(forward(ids[:, :-1]))
        for q in range(3):
            length = found.lengths[q, k]
            tokens = found.sequences[q, k, :length]
            assert tokens[-1] == EOS_ID and EOS_ID not in tokens[:-1] and (found.sequences[q, k, length:] == PAD_ID).all()
            total = log_probs[q, np.arange(length), tokens].sum()  # the EOS forced at the end counts with its own
            np.testing.assert_allclose(found.scores[q, k] * length**0.7, total, atol=5e-4)
    assert (np.diff(found.scores) <= 0).all()


def test_codes_have_a_fixed_length_and_stay_in_the_range(model, encoded):
    allowed = IdRange(VOCAB.first_code_id, VOCAB.first_bin_id)
    config = DecodeConfig(beam=6, max_len=4, min_len=4, fixed_length=True)
    mask = jnp.ones(3, bool)
    found = draw(model, encoded, mask=mask, config=config, constraint=allowed, top_k=8, code_rows="all")
    codes = found.sequences[..., :4]
    assert (found.lengths == 5).all() and (found.sequences[..., 4] == EOS_ID).all()
    assert ((codes >= VOCAB.first_code_id) & (codes < VOCAB.first_bin_id)).all()
    assert len({tuple(row) for row in codes[0].tolist()}) > 1


def test_members_behind_prefixes(model, encoded):
    members = {(5, 6), (7,), (8, 9, 5)}
    prefix_ids = np.array([[30, 31], [33, PAD_ID], [PAD_ID, PAD_ID]], np.int32)
    constraint = Members.of(build_trie(members))
    found = draw(model, encoded, config=DecodeConfig(beam=5, max_len=6), prefix_ids=prefix_ids, constraint=constraint)
    for q, prefix_len in enumerate([2, 1, 0]):
        for k in range(5):
            tokens = found.sequences[q, k, : found.lengths[q, k]].tolist()
            assert tokens[:prefix_len] == prefix_ids[q, :prefix_len].tolist()
            assert tuple(tokens[prefix_len:-1]) in members and tokens[-1] == EOS_ID


def test_draws_depend_on_the_key_and_the_row_alone(model, encoded):
    sequences = jax.jit(lambda e, key: sample(model, e, None, key, config=DecodeConfig(beam=3, max_len=5)).sequences)
    whole = sequences(encoded, KEY)
    np.testing.assert_array_equal(sequences(encoded, KEY), whole)
    assert (sequences(encoded, jax.random.key(8)) != whole).any()
    first = Encoded(encoded.states[:1], encoded.mask[:1], encoded.positions)
    np.testing.assert_array_equal(sequences(first, KEY), whole[:1])


def test_a_draw_that_became_impossible_is_no_hypothesis(model, encoded):
    """A member longer than `max_len`: nothing can end."""
    constraint = Members.of(build_trie([[5] * 4]))
    found = draw(model, encoded, config=DecodeConfig(beam=2, max_len=3), constraint=constraint)
    assert (found.scores == -np.inf).all() and (found.lengths == 0).all() and (found.sequences == PAD_ID).all()


@pytest.mark.parametrize(("options", "words"), [({"top_k": -1}, "top_k: found -1"), ({"top_p": 1.5}, "top_p: found 1.5")])
def test_cuts_that_make_no_sense(model, encoded, options, words):
    with pytest.raises(ValueError, match=words):
        sample(model, encoded, None, KEY, config=DecodeConfig(max_len=3), **options)
