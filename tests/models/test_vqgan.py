"""The VQGAN: taming-transformers' numbers, codes drawn and not, sides, widths and dtypes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.schema import VQGANConfig
from ofa_jax.convert import taming
from ofa_jax.models import vqgan
from ofa_jax.models.precision import policy

_SPEC = importlib.util.spec_from_file_location("models_golden", pathlib.Path(__file__).with_name("golden.py"))
golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)

CONFIG = VQGANConfig(width=32, attention_levels=(3,), latent_width=16, code_width=16, num_codes=64)
# Measured with taming-transformers on parameters and pictures of the deterministic field (`golden.field`).
CODES = [
    [4, 4, 5, 4, 42, 4, 42, 7, 45, 44, 10, 7, 13, 45, 42, 13],
    [42, 4, 4, 13, 29, 4, 60, 7, 33, 44, 13, 56, 57, 48, 50, 33],
]


def build(config=CONFIG, precision="f32"):
    """Structure and the field's parameters."""
    graphdef, abstract = jax.eval_shape(lambda: vqgan.create(config, jax.random.key(0), precision=precision))
    params = taming.from_state(golden.vqgan_state(config), config, where="golden field")
    return graphdef, jax.tree.map(lambda value, like: value.astype(like.dtype), params, abstract)


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, pixels):
    model = nnx.merge(graphdef, params)
    latents = model.latents(pixels)
    codes = model.encode(pixels)
    return latents, model.code_scores(latents), codes, model.decode(codes)


@pytest.mark.parametrize("convolution", ["xla", "matmul"])
def test_golden_numbers(convolution):
    graphdef, params = build(dataclasses.replace(CONFIG, convolution=convolution))
    latents, scores, codes, decoded = run(graphdef, params, golden.vqgan_pixels().astype(np.float32))
    close = functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=0)
    close(np.abs(latents).mean(), 0.469428)
    close(latents[0, 0, 0, :3], [0.25329, -0.14907, -0.20351])
    close(scores[0, 0, 0, :3], [-0.48405, 0.44107, -0.15167])
    assert codes.reshape(2, -1).tolist() == CODES
    close(np.abs(decoded).mean(), 0.479850)
    close(decoded[0, 3, 5], [0.19559, -0.01593, -0.49386])
    close(decoded[1, 31, 31], [-0.08557, 0.16180, 0.05273])


def test_published_model_has_its_number_of_parameters():
    shapes = taming.shapes(VQGANConfig())
    count = {part: sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith(part)) for part in ("encoder", "decoder")}
    assert count == {"encoder": 26_345_728, "decoder": 38_316_163}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 68_995_971


@pytest.mark.parametrize("side", [64, 128])
def test_any_side_gives_its_grid_of_codes(side):
    config = dataclasses.replace(CONFIG, width=8, norm_groups=4)
    graphdef, params = jax.eval_shape(lambda: vqgan.create(config, jax.random.key(0)))
    out = jax.eval_shape(functools.partial(run, graphdef), params, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    assert out[2].shape == (1, side // 8, side // 8) and out[2].dtype == jnp.int32
    assert out[3].shape == (1, side, side, 3)


def test_codes_drawn_with_a_key_differ_and_follow_the_scores():
    graphdef, params = build()
    pixels = golden.vqgan_pixels().astype(np.float32)
    draw = jax.jit(lambda key: nnx.merge(graphdef, params).encode(pixels, key=key))
    drawn = np.stack([draw(jax.random.key(seed)) for seed in range(200)])
    assert (drawn[0] != drawn[1]).any() and (draw(jax.random.key(0)) == drawn[0]).all()
    # The share of each code over all cells is its mean probability.
    scores = run(graphdef, params, pixels)[1]
    expected = np.asarray(jax.nn.softmax(scores)).mean((0, 1, 2))
    found = np.bincount(drawn.ravel(), minlength=64) / drawn.size
    error = np.sqrt(expected * (1 - expected) / drawn.size)
    assert (np.abs(found - expected) < 5 * error).all()


def test_the_nearest_quantiser_takes_the_nearest_entry():
    config = dataclasses.replace(CONFIG, quantizer="nearest", width=8, norm_groups=4)
    graphdef, params = build(config)
    latents, scores, codes, _ = run(graphdef, params, golden.vqgan_pixels().astype(np.float32))
    distance = ((np.asarray(latents)[..., None, :] - np.asarray(params["codebook"][...])) ** 2).sum(-1)
    assert (distance.argmin(-1) == codes).all()
    np.testing.assert_allclose(scores - 0.5 * (np.asarray(latents) ** 2).sum(-1, keepdims=True), -0.5 * distance, atol=1e-5)
    with pytest.raises(ValueError, match="only the Gumbel quantiser draws codes"):
        nnx.merge(graphdef, params).encode(jnp.zeros((1, 32, 32, 3)), key=jax.random.key(0))


@pytest.mark.parametrize("over", ["picture", "pixel"])
def test_a_norms_statistics_are_of_the_picture_or_of_each_pixel(over):
    config = dataclasses.replace(CONFIG, width=8, norm_groups=4, norm_over=over, norm_eps=0.1)
    norm = vqgan.GroupNorm(8, config, policy=policy("f32"))
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 8)) * np.arange(1, 9) + 3.0
    groups, axes = x.reshape(2, 5, 6, 4, 2), (1, 2, 4) if over == "picture" else (4,)
    expected = (groups - groups.mean(axes, keepdims=True)) / np.sqrt(groups.var(axes, keepdims=True) + 0.1)
    found = norm(jnp.asarray(x, jnp.float32), swish=False)
    np.testing.assert_allclose(found, expected.reshape(x.shape), atol=2e-5)


@pytest.mark.parametrize("over", ["picture", "pixel"])
def test_with_norms_of_each_pixel_a_level_sees_its_surroundings_alone(over):
    config = dataclasses.replace(CONFIG, width=8, norm_groups=1, norm_over=over, attention_levels=())
    level = vqgan.Level(0, 8, config, num_blocks=1, resize="", policy=policy("f32"))
    draw = np.random.default_rng(0)
    for part in (level.block0.conv1, level.block0.conv2):
        part.kernel[...] = jnp.asarray(draw.normal(size=part.kernel.shape), jnp.float32)
    x = jnp.asarray(draw.normal(size=(1, 16, 16, 8)), jnp.float32)
    inner = slice(2, -2)  # two convolutions of 3x3
    same = np.allclose(level(x[:, :8])[:, inner, inner], level(x)[:, 2:6, inner], atol=1e-4)
    assert same == (over == "pixel")


def test_the_network_begins_as_its_shortcuts():
    config = dataclasses.replace(CONFIG, width=8, norm_groups=4)
    graphdef, params = vqgan.create(config, jax.random.key(0))
    middle = nnx.merge(graphdef, params).encoder.middle
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 32)), jnp.float32)
    np.testing.assert_array_equal(middle(x), x)


def test_pixels_are_truncated_and_pictures_come_back():
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    pixels = vqgan.to_pixels(images, accum=np.float64 if jax.config.read("jax_enable_x64") else np.float32)
    assert pixels.min() == -1 and pixels.max() == 1
    # 8-bit values survive up to the rounding of float32, which truncation may turn into one step.
    assert (np.abs(vqgan.to_uint8(pixels).astype(int) - images) <= 1).all()
    assert vqgan.to_uint8(jnp.float32([-3, -1, -1e-6, 0.9999, 1, 7])).tolist() == [0, 0, 127, 254, 255, 255]


def test_bf16_computes_in_bf16_and_scores_in_f32():
    graphdef, params = build(precision="bf16")
    latents, scores, _, decoded = run(graphdef, params, golden.vqgan_pixels().astype(np.float32))
    assert latents.dtype == decoded.dtype == jnp.bfloat16 and scores.dtype == jnp.float32
    exact = run(*build(), golden.vqgan_pixels().astype(np.float32))
    assert np.abs(latents.astype(np.float32) - exact[0]).mean() < 0.02 * np.abs(exact[0]).mean()
