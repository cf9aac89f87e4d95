"""Beam search with the model's cache: against the uncached forward pass, greedy search, other batches and other devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, MeshConfig, ResNetConfig, VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.decode.beam import beam_search
from ofa_jax.decode.constraints import Members
from ofa_jax.decode.rules import DecodeConfig
from ofa_jax.decode.search import greedy
from ofa_jax.models import ofa
from ofa_jax.models.encoder import Encoded
from ofa_jax.parallel.mesh import batch_sharding, make_mesh
from ofa_jax.vocab.trie import build_trie
from tests.decode import plain_search

CONFIG = dataclasses.replace(
    SIZES["nano"], width=16, ffn_width=24, num_heads=2, resnet=ResNetConfig(blocks=(1, 1, 1), base_width=2, stem_pool=False),
    image_bucket_size=8, code_filler_id=64, code_image_px=16, init_std=0.5,
)  # fmt: skip
VOCAB = VocabConfig(num_text=40, num_codes=16, num_bins=8, pad_multiple=48)  # 64 ids in 96 rows
MASK = np.array([True, False, False, True])
MAX_LEN = 6


@pytest.fixture(scope="module")
def model():
    return nnx.merge(*ofa.create(CONFIG, VOCAB, jax.random.key(0)))


@pytest.fixture(scope="module", params=[pytest.param("shared", marks=pytest.mark.full), "sampled"])
def encoded(request, model):
    draw = np.random.default_rng(0)
    source_ids = draw.integers(4, 60, (4, 6)).astype(np.int32)
    source_ids[2, 3:] = PAD_ID
    features = jnp.asarray(draw.normal(size=(2, 16, 32)), jnp.float32)
    patch_ids = np.stack([draw.permutation(16)[:5] for _ in range(4)]) if request.param == "sampled" else None
    return jax.jit(lambda f: model.encode(source_ids, f, patch_ids=patch_ids))(features)


def decode(model, encoded, mask=None, **options):
    return jax.device_get(jax.jit(lambda e: beam_search(model, e, mask, **options))(encoded))


def uncached(model, encoded, mask):
    """logits_of(q) for the plain search: the whole forward pass, once a row asked for."""
    forward = jax.jit(lambda ids: model.logits(model.decode(encoded, ids, mask))[..., : VOCAB.size])

    def logits_of(q):
        def logits(row):
            ids = np.full((4, MAX_LEN + 1), BOS_ID, np.int32)
            ids[q, : len(row)] = row
            return np.asarray(forward(ids))[q, len(row) - 1]

        return logits

    return logits_of


@pytest.mark.parametrize("mask", [None, MASK], ids=["text", "mixed"])
def test_cached_equals_uncached(model, encoded, mask):
    config = DecodeConfig(beam=3, max_len=MAX_LEN, no_repeat_ngram=2)
    found = decode(model, encoded, mask, config=config)
    logits_of = uncached(model, encoded, mask)
    for q in range(4):
        for k, (tokens, score) in enumerate(plain_search.beam_search(logits_of(q), config)):
            assert found.sequences[q, k, : found.lengths[q, k]].tolist() == tokens
            np.testing.assert_allclose(found.scores[q, k], score, atol=2e-4)


def test_one_beam_is_greedy(model, encoded):
    expected = jax.jit(lambda e: greedy(model, e, None, max_len=MAX_LEN, min_len=3))(encoded)
    found = decode(model, encoded, config=DecodeConfig(beam=1, max_len=MAX_LEN, min_len=3))
    np.testing.assert_array_equal(found.sequences[:, 0, :MAX_LEN], expected)


def test_members_behind_prefixes_of_unequal_lengths(model, encoded):
    draw = np.random.default_rng(3)
    members = [tuple(row[: draw.integers(1, 4)]) for row in draw.integers(4, 12, (30, 3)).tolist()]
    prefix_ids = np.array([[9, 30, 5], [22, PAD_ID, PAD_ID], [PAD_ID] * 3, [7, 7, PAD_ID]], np.int32)
    config = DecodeConfig(beam=4, max_len=MAX_LEN, normalise=False)
    found = decode(model, encoded, config=config, prefix_ids=prefix_ids, constraint=Members.of(build_trie(members)))
    logits_of = uncached(model, encoded, None)
    for q, row in enumerate(prefix_ids):
        prefix = tuple(int(token) for token in row if token != PAD_ID)
        expected = plain_search.beam_search(logits_of(q), config, prefix=prefix, width=3, members=members)
        assert len(expected) == 4
        for k, (tokens, score) in enumerate(expected):
            assert found.sequences[q, k, : found.lengths[q, k]].tolist() == tokens
            assert tuple(tokens[: len(prefix)]) == prefix and tuple(tokens[len(prefix) : -1]) in set(members) and tokens[-1] == EOS_ID
            np.testing.assert_allclose(found.scores[q, k], score, atol=2e-4)


def rows(encoded: Encoded, chosen) -> Encoded:
    positions = encoded.positions if encoded.positions.shape[0] == 1 else encoded.positions[chosen]
    return Encoded(encoded.states[chosen], encoded.mask[chosen], positions)


def test_neighbours_change_nothing(model, encoded):
    config = DecodeConfig(beam=3, max_len=MAX_LEN)
    whole = decode(model, encoded, MASK, config=config)
    chosen = np.array([3, 0])
    part = decode(model, rows(encoded, chosen), MASK[chosen], config=config)
    np.testing.assert_array_equal(part.sequences, whole.sequences[chosen])
    np.testing.assert_allclose(part.scores, whole.scores[chosen], atol=1e-5)


@pytest.fixture(scope="module")
def eight(model):
    draw = np.random.default_rng(5)
    return jax.jit(lambda ids: model.encode(ids))(draw.integers(4, 60, (8, 6)).astype(np.int32))


@pytest.fixture(scope="module")
def members():
    return Members.of(build_trie(np.random.default_rng(6).integers(4, 40, (50, 3)).tolist()))


def test_eight_devices_equal_one(model, eight, members):
    search = jax.jit(lambda e, c: beam_search(model, e, None, config=DecodeConfig(beam=4, max_len=MAX_LEN), constraint=c))
    sharding = batch_sharding(make_mesh(MeshConfig(data=-1)))
    split = eight._replace(states=jax.device_put(eight.states, sharding), mask=jax.device_put(eight.mask, sharding))
    expected, found = search(eight, members), search(split, members)
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    text = search.lower(split, members).compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text, "every hypothesis stays on its sequence's device"


def test_calls_of_one_shape_compile_once(model, eight, members):
    traces = []

    @jax.jit
    def search(encoded, prefix_ids, constraint):
        traces.append(1)
        return beam_search(model, encoded, None, config=DecodeConfig(beam=2, max_len=3), prefix_ids=prefix_ids, constraint=constraint)

    for token in (4, 9, PAD_ID):
        search(rows(eight, np.arange(8)[::-1]), np.full((8, 1), token, np.int32), members)
    assert len(traces) == 1
