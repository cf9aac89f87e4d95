"""Convolutions: the product of shifted views is XLA's convolution, values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.models.convolution import convolve

CONVOLUTIONS = [(1, 1, 0, 8), (1, 2, 0, 9), (3, 1, 1, 8), (3, 2, 1, 8), (3, 2, 1, 7), (7, 2, 3, 16), (3, 2, (0, 1), 8)]


@pytest.mark.parametrize(("size", "stride", "padding", "pixels"), CONVOLUTIONS)
def test_matmul_convolution_equals_xla(size, stride, padding, pixels):
    x = jax.random.normal(jax.random.key(0), (2, pixels, pixels + 3, 3))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 3, 5))
    out = []
    for method in ("xla", "matmul"):

        def loss(x, kernel, method=method):
            y = convolve(x, kernel, stride=stride, padding=padding, method=method)
            return jnp.sin(y).sum(), y

        (_, y), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)
        out.append((y, *grads))
    for found, expected in zip(*out, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
