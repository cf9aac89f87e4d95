"""The picture network: convolutions, batch norm and its statistics."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.schema import ResNetConfig, VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.models import ofa, resnet
from ofa_jax.models.layers import draw_params
from ofa_jax.models.precision import policy

F32 = policy("f32")
SMALL = dataclasses.replace(SIZES["nano"], resnet=ResNetConfig(blocks=(1, 3), strides=(1, 2), base_width=4, stem_pool=True))


def build(config=SMALL):
    graphdef, params = nnx.split(resnet.ResNet(config, policy=F32))
    return graphdef, draw_params(params, jax.random.key(0)), resnet.init_stats(config.resnet, F32.accum)


@functools.partial(jax.jit, static_argnames=("graphdef", "train"))
def run(graphdef, params, stats, pixels, train=True, key=None):
    return nnx.merge(graphdef, params)(pixels, stats=stats, train=train, key=key)


@pytest.mark.full
def test_convolution_methods_agree_in_the_network():
    # In float64: batch norm of few values amplifies the rounding of float32 sums in another order.
    jax.config.update("jax_enable_x64", True)
    try:
        pixels = jax.random.normal(jax.random.key(2), (4, 32, 32, 3), jnp.float64)
        configs = (SMALL, dataclasses.replace(SMALL, convolution="matmul"))
        graphdefs = [nnx.split(resnet.ResNet(config, policy=policy("f64")))[0] for config in configs]
        params = draw_params(nnx.split(resnet.ResNet(SMALL, policy=policy("f64")))[1], jax.random.key(0))
        stats = resnet.init_stats(SMALL.resnet, policy("f64").accum)

        def loss(params, graphdef):
            y, new = run(graphdef, params, stats, pixels)
            return (y**2).mean(), (y, new)

        results = [jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(params, g) for g in graphdefs]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), *results)
    finally:
        jax.config.update("jax_enable_x64", False)


def numpy_batch_norm(x, scale, bias, stats, group):
    groups = x.reshape(-1, group, *x.shape[1:]).astype(np.float64)
    mean, var = groups.mean((1, 2, 3)), groups.var((1, 2, 3))
    n = groups[0, ..., 0].size
    y = (groups - mean[:, None, None, None]) / np.sqrt(var + 1e-5)[:, None, None, None] * scale + bias
    kept = {"mean": mean.mean(0), "var": (var * n / (n - 1)).mean(0)}
    return y.reshape(x.shape), {k: 0.9 * stats[k] + 0.1 * kept[k] for k in kept}


@pytest.mark.parametrize("group", [0, 2, 6])
def test_batch_norm_against_numpy(group):
    norm = resnet.BatchNorm(5, dataclasses.replace(SMALL, norm_group=group), policy=F32)
    draw = np.random.default_rng(0)
    scale, bias, mean = (draw.normal(size=5).astype(np.float32) for _ in range(3))
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    stats = {"mean": mean, "var": np.abs(draw.normal(size=5)).astype(np.float32)}
    x = (3 + 2 * draw.normal(size=(6, 4, 3, 5))).astype(np.float32)
    y, new = jax.jit(lambda x: norm(x, stats, train=True))(x)
    expected, kept = numpy_batch_norm(x, scale, bias, stats, group or 6)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new, kept)
    y, same = norm(jnp.asarray(x), stats, train=False)
    np.testing.assert_allclose(y, (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * scale + bias, atol=1e-4)
    assert same is stats


def test_norm_groups_do_not_see_each_other():
    graphdef, params, stats = build(dataclasses.replace(SMALL, norm_group=2))
    pixels = jax.random.normal(jax.random.key(3), (4, 32, 32, 3))
    whole, _ = run(graphdef, params, stats, pixels)
    part, _ = run(graphdef, params, stats, pixels[2:])
    np.testing.assert_allclose(whole[2:], part, atol=1e-4)
    with pytest.raises(ValueError, match="model.norm_group: found 3 images in a stream, expected a multiple of 2"):
        run(graphdef, params, stats, pixels[:3])


def test_frozen_norm_reads_and_never_writes():
    config = dataclasses.replace(SMALL, image_norm="frozen")
    graphdef, params, stats = build(config)
    pixels = jax.random.normal(jax.random.key(4), (2, 32, 32, 3))

    def loss(params):
        y, new = run(graphdef, params, stats, pixels)
        return (y**2).sum(), (y, new)

    grads, (y, new) = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, new, stats))
    np.testing.assert_allclose(y, run(graphdef, params, stats, pixels, train=False)[0], rtol=1e-5, atol=1e-5)
    assert jnp.abs(grads["stem"][...]).sum() > 0, "convolutions still train"
    assert jnp.abs(grads["stem_norm"]["scale"][...]).sum() == 0


def test_statistics_tree_is_stable_and_moves():
    graphdef, params, stats = build()
    _, new = run(graphdef, params, stats, 5 + jax.random.normal(jax.random.key(5), (2, 64, 48, 3)))
    assert jax.tree.structure(new) == jax.tree.structure(stats)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(lambda a: (a.shape, a.dtype), stats)
    assert all(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(stats), strict=True))


def test_output_stride():
    graphdef, params, stats = build()
    for side, cells in ((64, 8), (100, 13), (97, 13)):
        assert run(graphdef, params, stats, jnp.zeros((1, side, side, 3)), train=False)[0].shape == (1, cells, cells, 32)


def test_drop_path_drops_whole_images():
    config = dataclasses.replace(SMALL, resnet=dataclasses.replace(SMALL.resnet, drop_path_rate=1.0 - 1e-6))
    graphdef, params, stats = build(config)
    pixels = jax.random.normal(jax.random.key(6), (2, 32, 32, 3))
    plain, _ = run(graphdef, params, stats, pixels, train=False)
    dropped, _ = run(graphdef, params, stats, pixels, train=False, key=jax.random.key(0))
    assert np.abs(plain - dropped).max() > 1e-3


def test_normalisation_and_hole():
    images = np.full((2, 8, 8, 3), 255, np.uint8)
    pixels = np.asarray(resnet.normalise_images(images, np.array([False, True]), accum=F32.accum))
    assert (pixels[0] == 1).all() and (pixels[1, 2:6, 2:6] == 0).all() and pixels[1].sum() == (64 - 16) * 3
    assert (np.asarray(resnet.normalise_images(images * 0, None, accum=F32.accum)) == -1).all()


def test_normalisation_by_imagenet():
    images = np.array([[[[0, 128, 255]]]], np.uint8)
    pixels = np.asarray(resnet.normalise_images(images, None, scale="imagenet", accum=F32.accum))
    # (0 - 0.485) / 0.229, (128/255 - 0.456) / 0.224, (1 - 0.406) / 0.225
    np.testing.assert_allclose(pixels.ravel(), [-2.117904, 0.205182, 2.64], atol=1e-5)


def test_the_model_normalises_as_its_config_says():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    vocab = VocabConfig(num_text=20, num_codes=4, num_bins=4)
    stats = ofa.init_stats(SMALL)
    features = {}
    for scale in ("half", "imagenet"):
        config = dataclasses.replace(SMALL, pixel_scale=scale)
        graphdef, params = ofa.create(config, vocab, jax.random.key(0))
        model = nnx.merge(graphdef, params)
        features[scale] = model.embed_images(images, None, stats=stats, train=False)[0]
        pixels = resnet.normalise_images(images, None, scale=scale, accum=F32.accum)
        expected, _ = model.resnet(pixels, stats=stats, train=False)
        np.testing.assert_allclose(features[scale], np.asarray(expected).reshape(features[scale].shape), atol=1e-5)
    assert np.abs(features["half"] - features["imagenet"]).max() > 1e-3
