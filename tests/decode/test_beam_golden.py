"""Beam search on the golden model, against hypotheses and scores measured with the official code."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.decode.beam import beam_search
from tests.models import golden


@pytest.fixture(scope="module", params=["unroll", pytest.param("scan", marks=pytest.mark.full)])
def encoded(request):
    graphdef, params, stats = golden.build(dataclasses.replace(golden.MODEL, layers=request.param))

    @jax.jit
    def encode(params, stats, pixels):
        model = nnx.merge(graphdef, params)
        features, _ = model.resnet(pixels, stats=stats, train=False)
        return model.encode(golden.SOURCE_IDS, features.reshape(3, 24, -1), image_mask=golden.IMAGE_MASK, grid=(4, 6))

    return nnx.merge(graphdef, params), encode(params, stats, golden.pixels().astype(np.float32))


@pytest.mark.parametrize("setting", golden.SEARCHES)
def test_the_official_searches(encoded, setting):
    model, encoded = encoded
    config, constraint, scores, sequences = golden.SEARCHES[setting]
    codes = constraint is not None
    mask = jnp.ones(3, bool) if codes else None
    decode = jax.jit(
        lambda encoded: beam_search(model, encoded, mask, config=config, constraint=constraint, code_rows="all" if codes else "none")
    )
    found = decode(encoded)
    assert found.sequences[:, 0].tolist() == sequences
    np.testing.assert_allclose(found.scores[:, 0], scores, rtol=0, atol=1e-4)
