"""Beam search on the golden model, against hypotheses and scores measured with the official code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.decode.beam import beam_search
from ofa_jax.decode.constraints import IdRange
from ofa_jax.decode.rules import DecodeConfig
from tests.models import golden


@pytest.fixture(scope="module")
def encoded():
    graphdef, params, stats = golden.build()

    @jax.jit
    def encode(params, stats, pixels):
        model = nnx.merge(graphdef, params)
        features, _ = model.resnet(pixels, stats=stats, train=False)
        return model.encode(golden.SOURCE_IDS, features.reshape(3, 24, -1), image_mask=golden.IMAGE_MASK, grid=(4, 6))

    return nnx.merge(graphdef, params), encode(params, stats, golden.pixels().astype(np.float32))


# The best hypothesis of each of the three rows.
TABLE = {
    "n-grams, normalised": (
        DecodeConfig(beam=5, max_len=6, min_len=1, no_repeat_ngram=3), None,
        [-2.3210, -2.4011, -2.0997],
        [[15, 15, 15, 100, 100, 100, 2], [15, 15, 15, 100, 100, 100, 2], [281, 281, 281, 284, 284, 284, 2]],
    ),
    "exactly four tokens": (
        DecodeConfig(beam=5, max_len=4, min_len=4, no_repeat_ngram=3), None,
        [-2.9672, -3.0441, -2.8341],
        [[15, 15, 15, 100, 2], [15, 15, 15, 100, 2], [90, 90, 90, 180, 2]],
    ),
    "length penalty": (
        DecodeConfig(beam=4, max_len=9, no_repeat_ngram=2, lenpen=0.7), None,
        [-5.6465, -5.4191, -4.1368],
        [[15, 15, 262, 262, 159, 159, 104, 104, 159, 2]] * 2 + [[90, 90, 180, 180, 184, 184, 94, 94, 68, 2]],
    ),
    "codes in a range": (
        DecodeConfig(beam=3, max_len=6, min_len=6, fixed_length=True), IdRange(100, 200),
        [-2.0946, -2.2149, -1.5957],
        [[185] * 6 + [2], [192] * 6 + [2], [127] * 6 + [2]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("setting", TABLE)
def test_the_official_searches(encoded, setting):
    model, encoded = encoded
    config, constraint, scores, sequences = TABLE[setting]
    codes = constraint is not None
    mask = jnp.ones(3, bool) if codes else None
    decode = jax.jit(
        lambda encoded: beam_search(model, encoded, mask, config=config, constraint=constraint, code_rows="all" if codes else "none")
    )
    found = decode(encoded)
    assert found.sequences[:, 0].tolist() == sequences
    np.testing.assert_allclose(found.scores[:, 0], scores, rtol=0, atol=1e-4)
