"""Every output of small OFAs of every shape against the plain NumPy forward pass; that pass itself against the official numbers."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from plain_ofa import forward

from ofa_jax.config.schema import VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.convert import verify
from ofa_jax.convert.transfer import count_parameters
from ofa_jax.convert.weights import from_state, to_state

PARAMETERS = {"tiny": 33_488_336, "medium": 92_892_000, "base": 182_238_536, "large": 472_977_152, "huge": 929_486_848}


def draw_inputs(seed: int, *, size: int, height: int = 64, width: int = 96, **more: np.ndarray) -> dict[str, np.ndarray]:
    """Three rows with padding in every place: short sources and targets, one picture hidden."""
    rng = np.random.default_rng(seed)
    source, target = rng.integers(4, size, (3, 9)), rng.integers(4, size, (3, 14))
    source[1, 5:], target[2, 9:], target[0, 13:] = 1, 1, 1
    images = rng.normal(size=(3, 3, height, width)).astype(np.float32)
    return {
        "src_tokens": source, "prev_output_tokens": target, "patch_images": images, "patch_masks": np.array([True, True, False]), **more
    }  # fmt: skip


def check(model, vocab, state, inputs, tolerance=1e-4):
    weights = from_state(state, model, vocab, where="field")
    found = verify.run(weights, inputs, model, vocab)
    expected = forward(state, inputs, code_grid=model.code_grid)
    assert set(found) == set(expected)
    for line in verify.compare(found, expected, inputs, where="plain"):
        assert line.error <= tolerance, line


def float32(state):
    return {name: array.astype(np.float32) for name, array in state.items()}


def test_the_plain_pass_gives_the_official_numbers(golden):
    inputs = {
        "src_tokens": golden.SOURCE_IDS, "prev_output_tokens": golden.DECODER_IDS, "patch_masks": golden.IMAGE_MASK,
        "patch_images": golden.pixels().transpose(0, 3, 1, 2), "code_masks": np.array([False, True, False]),
    }  # fmt: skip
    found = forward(golden.state(), inputs, code_grid=16)
    np.testing.assert_allclose(found["encoder_out"][1, 28, :4], [-0.73587, 1.20980, 1.69143, -0.54854], atol=2e-5)
    np.testing.assert_allclose(found["logits"][0, 0, :4], [1.74424, -3.15835, -0.78411, 3.66405], atol=2e-5)
    np.testing.assert_allclose(found["logits"][1, 11, 100:104], [4.40863, 1.54179, 4.41177, -2.26711], atol=2e-5)


@pytest.mark.parametrize("codes", ["text", "mixed"])
def test_small_models_of_every_shape(model, golden, codes):
    more = {"code_masks": np.array([True, False, True])} if codes == "mixed" else {}
    check(model, golden.VOCAB, float32(golden.state(model)), draw_inputs(0, size=golden.VOCAB.size, **more))


def test_sampled_patches_and_text_alone(small, golden):
    state = float32(golden.state(small))
    inputs = draw_inputs(1, size=golden.VOCAB.size)
    features = verify.run(from_state(state, small, golden.VOCAB, where="field"), inputs, small, golden.VOCAB)["resnet"]
    patches = features.shape[2] * features.shape[3]
    orders = np.stack([np.random.default_rng(row).permutation(patches)[:5] for row in range(3)])
    check(small, golden.VOCAB, state, {**inputs, "patch_orders": orders})
    check(small, golden.VOCAB, state, {name: inputs[name] for name in ("src_tokens", "prev_output_tokens")})


@pytest.mark.full
def test_other_vocabularies(small, golden):
    for vocab in (VocabConfig(num_text=37, num_codes=8, num_bins=5, pad_multiple=1), VocabConfig(num_text=600, num_codes=0, num_bins=0)):
        check(small, vocab, float32(golden.state(small, vocab)), draw_inputs(2, size=vocab.size))


@pytest.mark.full
@pytest.mark.parametrize("size", PARAMETERS)
def test_real_sizes(size, golden):
    """The full vocabulary: every output against the plain pass, scanned too; out and in again bit for bit."""
    model, vocab = dataclasses.replace(SIZES[size], layers="scan" if size == "huge" else "unroll"), VocabConfig()
    assert count_parameters(model, vocab) == PARAMETERS[size]
    state = float32(golden.state(model, vocab))
    check(model, vocab, state, draw_inputs(3, size=vocab.size, code_masks=np.array([False, True, False])))
    once = to_state(from_state(state, model, vocab, where="field"), model, vocab, style="hf")
    again = to_state(from_state(once, model, vocab, where="hf"), model, vocab)
    for name, array in state.items():
        assert again[name].tobytes() == array.tobytes(), name
