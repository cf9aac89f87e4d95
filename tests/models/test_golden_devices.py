"""The golden forward pass on eight devices, its three rows padded to eight with masked ones: the official numbers in every layout."""

from __future__ import annotations

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.schema import MeshConfig
from ofa_jax.decode.beam import beam_search
from ofa_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from ofa_jax.parallel.rules import param_shardings
from ofa_jax.train.loss import block_loss, group_sums

_SPEC = importlib.util.spec_from_file_location("devices_golden", pathlib.Path(__file__).with_name("golden.py"))
golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)

ROWS = 8
LAYOUTS = [
    {"data": 8},
    pytest.param({"data": 1, "fsdp": 4, "tensor": 2}, marks=pytest.mark.full),
    pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.full),
]


def padded(array: np.ndarray, value) -> np.ndarray:
    """The rows of the batch and masked ones behind them."""
    more = np.full((ROWS - len(array), *array.shape[1:]), value, array.dtype)
    return np.concatenate([array, more])


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def placed(request):
    """(graphdef, parameters, statistics, inputs) of the golden model, laid out over eight devices."""
    graphdef, params, stats = golden.build()
    mesh = make_mesh(MeshConfig(**request.param))
    inputs = {
        "pixels": padded(golden.pixels().astype(np.float32), 0.0),
        "source_ids": padded(golden.SOURCE_IDS, 1),
        "decoder_ids": padded(golden.DECODER_IDS, 1),
        "image_mask": padded(golden.IMAGE_MASK, False),
        "code_mask": padded(np.array([False, True, False]), False),
    }
    inputs = {name: jax.device_put(array, batch_sharding(mesh)) for name, array in inputs.items()}
    return graphdef, jax.device_put(params, param_shardings(params, mesh)), jax.device_put(stats, replicated(mesh)), inputs


def encode(model, stats, inputs):
    features, _ = model.resnet(inputs["pixels"], stats=stats, train=False)
    return model.encode(inputs["source_ids"], features.reshape(ROWS, 24, -1), image_mask=inputs["image_mask"], grid=(4, 6))


def test_official_numbers_in_every_layout(placed):
    graphdef, params, stats, inputs = placed

    @jax.jit
    def forward(params, stats, inputs):
        model = nnx.merge(graphdef, params)
        encoded = encode(model, stats, inputs)
        return encoded.states, model.logits(model.decode(encoded, inputs["decoder_ids"], inputs["code_mask"]))

    states, logits = jax.device_get(forward(params, stats, inputs))
    assert np.isfinite(logits).all(), "a row without a key must not be NaN"
    np.testing.assert_allclose(states[1, 28, :4], [-0.73587, 1.20980, 1.69143, -0.54854], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[0, 0, :4], [1.74424, -3.15835, -0.78411, 3.66405], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[1, 11, 100:104], [4.40863, 1.54179, 4.41177, -2.26711], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[2, 8, golden.VOCAB.size - 3 : golden.VOCAB.size], [4.13820, 7.03970, 4.85796], rtol=0, atol=1e-4)


def test_official_losses_in_every_layout(placed):
    """Rows of padding have confidence 0 and targets of PAD alone, as in a training batch."""
    graphdef, params, stats, inputs = placed

    @jax.jit
    def losses(params, stats, inputs):
        model = nnx.merge(graphdef, params)
        logits = model.logits(model.decode(encode(model, stats, inputs), inputs["decoder_ids"]))
        found = []
        for config, confidence, _, _ in golden.LOSSES:
            targets = golden.within(golden.TARGET_IDS, config.constraint_range) if config.constraint_range else golden.TARGET_IDS
            block = block_loss(
                logits, logits_of=lambda logits: logits, target_ids=padded(targets, 1),
                confidence=padded(np.ones(3, np.float32) if confidence is None else confidence, 0.0), task_ids=np.zeros(ROWS, int),
                num_tasks=1, vocab_size=golden.VOCAB.size, config=config,
            )  # fmt: skip
            sums = group_sums([block], config=config, step=1)
            found.append((sums.loss, sums.num_tokens))
        return found

    for (loss, count), (config, _, expected, num_tokens) in zip(losses(params, stats, inputs), golden.LOSSES, strict=True):
        assert float(count) == num_tokens, config
        np.testing.assert_allclose(loss, expected, rtol=2e-6, err_msg=str(config))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if k == 0 else [pytest.mark.full]) for k, name in enumerate(golden.SEARCHES)])
def test_official_searches_in_every_layout(placed, name):
    graphdef, params, stats, inputs = placed
    config, constraint, scores, sequences = golden.SEARCHES[name]
    codes = constraint is not None

    @jax.jit
    def search(params, stats, inputs):
        model = nnx.merge(graphdef, params)
        mask = jnp.ones(ROWS, bool) if codes else None
        encoded = encode(model, stats, inputs)
        return beam_search(model, encoded, mask, config=config, constraint=constraint, code_rows="all" if codes else "none")

    found = search(params, stats, inputs)
    assert found.sequences[:3, 0].tolist() == sequences
    np.testing.assert_allclose(found.scores[:3, 0], scores, rtol=0, atol=1e-4)
