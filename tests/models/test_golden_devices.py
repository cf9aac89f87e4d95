"""The golden forward pass on eight devices, its three rows padded to eight with masked ones: the official numbers in every layout."""

from __future__ import annotations

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.schema import MeshConfig
from ofa_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from ofa_jax.parallel.rules import param_shardings

_SPEC = importlib.util.spec_from_file_location("devices_golden", pathlib.Path(__file__).with_name("golden.py"))
golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)

ROWS = 8


def padded(array: np.ndarray, value) -> np.ndarray:
    """The rows of the batch and masked ones behind them."""
    more = np.full((ROWS - len(array), *array.shape[1:]), value, array.dtype)
    return np.concatenate([array, more])


@pytest.mark.parametrize("layout", [{"data": 8}, {"data": 1, "fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_official_numbers_in_every_layout(layout):
    graphdef, params, stats = golden.build()
    mesh = make_mesh(MeshConfig(**layout))
    params = jax.device_put(params, param_shardings(params, mesh))
    stats = jax.device_put(stats, replicated(mesh))
    inputs = {
        "pixels": padded(golden.pixels().astype(np.float32), 0.0),
        "source_ids": padded(golden.SOURCE_IDS, 1),
        "decoder_ids": padded(golden.DECODER_IDS, 1),
        "image_mask": padded(golden.IMAGE_MASK, False),
        "code_mask": padded(np.array([False, True, False]), False),
    }
    inputs = {name: jax.device_put(array, batch_sharding(mesh)) for name, array in inputs.items()}

    @jax.jit
    def forward(params, stats, inputs):
        model = nnx.merge(graphdef, params)
        features, _ = model.resnet(inputs["pixels"], stats=stats, train=False)
        encoded = model.encode(inputs["source_ids"], features.reshape(ROWS, 24, -1), image_mask=inputs["image_mask"], grid=(4, 6))
        return encoded.states, model.logits(model.decode(encoded, inputs["decoder_ids"], inputs["code_mask"]))

    states, logits = jax.device_get(forward(params, stats, inputs))
    assert np.isfinite(logits).all(), "a row without a key must not be NaN"
    np.testing.assert_allclose(states[1, 28, :4], [-0.73587, 1.20980, 1.69143, -0.54854], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[0, 0, :4], [1.74424, -3.15835, -0.78411, 3.66405], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[1, 11, 100:104], [4.40863, 1.54179, 4.41177, -2.26711], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[2, 8, golden.VOCAB.size - 3 : golden.VOCAB.size], [4.13820, 7.03970, 4.85796], rtol=0, atol=1e-4)
