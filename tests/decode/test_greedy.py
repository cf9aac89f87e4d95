"""Greedy generation with a cache against the plain forward pass."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, ResNetConfig, VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.decode import search
from ofa_jax.decode.cache import decode_step, init_cache
from ofa_jax.models import ofa

CONFIG = dataclasses.replace(
    SIZES["nano"], width=16, ffn_width=24, num_heads=2, resnet=ResNetConfig(blocks=(1, 1, 1), base_width=2, stem_pool=False),
    image_bucket_size=8, code_filler_id=64, code_image_px=16, init_std=0.5,
)  # fmt: skip
VOCAB = VocabConfig(num_text=40, num_codes=16, num_bins=8, pad_multiple=32)
MASKS = {"none": None, "all": np.ones(4, bool), "mixed": np.array([True, False, False, True])}


MODELS = {"unroll": {}, "scan": {"layers": "scan"}, "light": {"adapter_width": 3, "prompt_lens": (2, 3)}}


# The fast tier has all that differs once: sampled patches without adapters and prompts, these with whole pictures.
CASES = {("unroll", "sampled"): True, ("light", "shared"): True}
CASES |= dict.fromkeys([("unroll", "shared"), ("light", "sampled"), ("scan", "shared"), ("scan", "sampled")], False)


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id="-".join(case), marks=[] if fast else [pytest.mark.full]) for case, fast in CASES.items()],
)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def model(case):
    return nnx.merge(*ofa.create(dataclasses.replace(CONFIG, **MODELS[case[0]]), VOCAB, jax.random.key(0)))


@pytest.fixture(scope="module")
def encoded(case, model):
    draw = np.random.default_rng(0)
    source_ids = draw.integers(4, 60, (4, 6)).astype(np.int32)
    source_ids[2, 3:] = PAD_ID
    features = jnp.asarray(draw.normal(size=(2, 16, 32)), jnp.float32)
    patch_ids = np.stack([draw.permutation(16)[:5] for _ in range(4)]) if case[1] == "sampled" else None
    return jax.jit(lambda f: model.encode(source_ids, f, patch_ids=patch_ids))(features)


@pytest.mark.parametrize("rows", MASKS)
def test_cached_logits_equal_uncached(model, encoded, rows):
    ids = np.random.default_rng(1).integers(4, 60, (4, 9)).astype(np.int32)
    ids[:, 0] = BOS_ID
    ids[1, 6:] = PAD_ID
    expected = jax.jit(lambda ids: model.logits(model.decode(encoded, ids, MASKS[rows], code_rows=rows)))(ids)

    def run(ids):
        def step(cache, xs):
            logits, cache = decode_step(model, cache, *xs, code_mask=MASKS[rows], code_rows=rows)
            return cache, logits

        cache = init_cache(model, encoded, 9, code_mask=MASKS[rows], code_rows=rows)
        return jax.lax.scan(step, cache, (ids.T, jnp.arange(9)))[1].swapaxes(0, 1)

    np.testing.assert_allclose(jax.jit(run)(jnp.asarray(ids)), expected, atol=2e-4)


def uncached_greedy(model, encoded, code_mask, max_len, min_len=0, allowed=None):
    ids = np.full((4, max_len + 1), BOS_ID, np.int32)  # later places do not reach back: attention is causal
    ended = np.zeros(4, bool)
    forward = jax.jit(lambda ids: model.logits(model.decode(encoded, ids, code_mask)))
    for place in range(max_len):
        logits = np.array(forward(ids))[:, place]
        logits[:, PAD_ID] = -np.inf
        if allowed:
            logits[:, 4 : allowed[0]] = -np.inf
            logits[:, allowed[1] :] = -np.inf
        if place < min_len:
            logits[:, EOS_ID] = -np.inf
        chosen = np.where(ended, PAD_ID, logits.argmax(-1)).astype(np.int32)
        ids[:, place + 1], ended = chosen, ended | (chosen == EOS_ID)
    return ids[:, 1:]


@pytest.mark.parametrize(("rows", "options"), [("none", {}), ("mixed", {"min_len": 3}), ("none", {"allowed": (10, 30)})])
def test_greedy_equals_uncached_search(model, encoded, rows, options):
    mask = MASKS[rows]
    found = np.asarray(jax.jit(lambda e: search.greedy(model, e, mask, max_len=7, **options))(encoded))
    assert found.shape == (4, 7) and found.dtype == np.int32
    np.testing.assert_array_equal(found, uncached_greedy(model, encoded, mask, 7, **options))


def test_end_of_sequence_stops_a_row_and_the_loop():
    model = nnx.merge(*ofa.create(CONFIG, VOCAB, jax.random.key(0)))
    table = np.zeros((VOCAB.padded_size, 16), np.float32)
    model.decoder.norm.scale[...] = jnp.zeros(16)
    model.decoder.norm.bias[...] = jnp.eye(16)[0]
    table[EOS_ID, 0], table[7, 0] = 2.0, 1.0
    model.embedding.table[...] = jnp.asarray(table)
    encoded = jax.jit(lambda: model.encode(np.array([[0, 5, 2]], np.int32)))()

    def greedy(*args, **options):
        return jax.jit(lambda: search.greedy(*args, **options))()

    assert greedy(model, encoded, None, max_len=5).tolist() == [[EOS_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID]]
    assert greedy(model, encoded, None, max_len=5, min_len=2).tolist() == [[7, 7, EOS_ID, PAD_ID, PAD_ID]]
    assert greedy(model, encoded, None, max_len=2, min_len=4).tolist() == [[7, 7]]
