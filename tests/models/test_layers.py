"""Small modules against plain references, values and gradients."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.models import layers
from ofa_jax.models.precision import policy

F32 = policy("f32")


def test_layer_norm_equals_automatic_differentiation():
    keys = jax.random.split(jax.random.key(0), 4)
    x, scale, bias, probe = (jax.random.normal(k, s) for k, s in zip(keys, [(3, 5, 16), (16,), (16,), (3, 5, 16)], strict=True))

    def plain(x, scale, bias):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    def ours(x, scale, bias):
        return layers.layer_norm(x, scale, bias, 1e-5, F32.accum)

    np.testing.assert_allclose(ours(x, scale, bias), plain(x, scale, bias), atol=1e-5)
    found, expected = (jax.jit(jax.grad(lambda *a, f=f: (f(*a) * probe).sum(), argnums=(0, 1, 2)))(x, scale, bias) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_linear_equals_automatic_differentiation():
    keys = jax.random.split(jax.random.key(1), 4)
    x, kernel, bias, probe = (jax.random.normal(k, s) for k, s in zip(keys, [(3, 5, 8), (8, 6), (6,), (3, 5, 6)], strict=True))
    fns = (lambda x, k, b: layers.linear(x, k, b, F32.accum), lambda x, k, b: x @ k + b)
    np.testing.assert_allclose(fns[0](x, kernel, bias), fns[1](x, kernel, bias), atol=1e-6)
    found, expected = (jax.jit(jax.grad(lambda *a, f=f: (f(*a) * probe).sum(), argnums=(0, 1, 2)))(x, kernel, bias) for f in fns)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_tied_logits_equal_automatic_differentiation():
    keys = jax.random.split(jax.random.key(2), 3)
    hidden, table, probe = (jax.random.normal(k, s) for k, s in zip(keys, [(3, 5, 8), (11, 8), (3, 5, 11)], strict=True))
    fns = (lambda h, t: layers.tied_logits(h, t, F32.accum), lambda h, t: h @ t.T)
    found, expected = (jax.jit(jax.value_and_grad(lambda *a, f=f: (f(*a) * probe).sum(), argnums=(0, 1)))(hidden, table) for f in fns)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)
    half = jax.jit(jax.grad(lambda h, t: (fns[0](h, t) * probe).sum(), argnums=(0, 1)))(hidden.astype(jnp.bfloat16), table)
    assert half[0].dtype == jnp.bfloat16 and half[1].dtype == jnp.float32
    np.testing.assert_allclose(half[1], expected[1][1], atol=0.1)


def test_linear_sums_parameter_gradients_in_f32():
    x = jnp.ones((4096, 1), jnp.bfloat16)
    kernel, bias = jnp.ones((1, 1)), jnp.zeros((1,))
    dkernel, dbias = jax.grad(lambda k, b: layers.linear(x, k, b, F32.accum).astype(jnp.float32).sum(), argnums=(0, 1))(kernel, bias)
    assert dkernel.item() == 4096 and dbias.item() == 4096  # a bf16 sum of ones stops at 256


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x), F32.accum), expected, atol=2e-6)


def test_dropout_and_drop_path_keep_the_mean():
    x = jnp.ones((4000, 2, 3))
    key = jax.random.key(3)
    dropped = layers.dropout(x, 0.25, key)
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.75], atol=1e-6)
    assert abs(float(dropped.mean()) - 1) < 0.02
    paths = np.asarray(layers.drop_path(x, 0.25, key))
    assert (paths == paths[:, :1, :1]).all(), "a path is dropped for a whole sample"
    assert abs(paths.mean() - 1) < 0.03
    assert layers.dropout(x, 0.25, None) is x and layers.drop_path(x, 0.25, None) is x


def test_draws_have_their_deviation_and_large_tensors_their_own_draw(monkeypatch):
    module = layers.Linear(64, 32, (None, None), std=0.5, policy=F32, stack=4)
    zeros = nnx.state(module)
    small = layers.draw_params(zeros, jax.random.key(0))
    monkeypatch.setattr(layers, "_LARGE", 10)
    large = layers.draw_params(zeros, jax.random.key(0))
    for params in (small, large):
        kernel = np.asarray(params["kernel"][...])
        assert abs(kernel.std() - 0.5) < 0.02 and abs(kernel.mean()) < 0.02 and not np.array_equal(kernel[0], kernel[1])
        assert (params["bias"][...] == 0).all() and params["kernel"].axes == ("layers", None, None)
    assert jax.tree.structure(small) == jax.tree.structure(zeros)


def test_drop_path_rates_start_at_zero():
    np.testing.assert_allclose(layers.drop_path_rates(0.1, 6), [0, 0.02, 0.04, 0.06, 0.08, 0.1], atol=1e-7)


@pytest.mark.parametrize("mode", ["unroll", "scan"])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_run_layers(mode, remat):
    graphdef, params = nnx.split(layers.Linear(4, 4, ("width", "width"), std=0.5, policy=F32, stack=3))
    params = layers.draw_params(params, jax.random.key(0))
    stack = nnx.merge(graphdef, params)
    x = jax.random.normal(jax.random.key(1), (2, 4))

    def run(params):
        def step(layer, x, offset):
            x = jnp.tanh(layer(x)) + offset
            return x, x.sum()

        return layers.run_layers(nnx.merge(graphdef, params), step, x, jnp.arange(3.0), num=3, mode=mode, remat=remat)

    expected, sums = x, []
    for i in range(3):
        expected = jnp.tanh(expected @ stack.kernel[i] + stack.bias[i]) + i
        sums.append(expected.sum())
    last, ys = jax.jit(run)(params)
    np.testing.assert_allclose(last, expected, atol=1e-5)
    np.testing.assert_allclose(ys, sums, atol=1e-5)
    grads = jax.jit(jax.grad(lambda p: run(p)[0].sum()))(params)
    assert grads["kernel"].shape == (3, 4, 4) and all(jnp.abs(g).sum() > 0 for g in grads["kernel"][...])


def test_wrong_names_fail_with_a_sentence():
    with pytest.raises(ValueError, match="precision: found 'f16'"):
        policy("f16")
    with pytest.raises(ValueError, match="jax_enable_x64"):
        policy("f64")
    linear = layers.Linear(2, 2, (None, None), std=1.0, policy=F32, stack=1)
    with pytest.raises(ValueError, match="model.remat: found 'some'"):
        layers.run_layers(linear, lambda m, c, x: (c, None), 0, None, num=1, mode="unroll", remat="some")
