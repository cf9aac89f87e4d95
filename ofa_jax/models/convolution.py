"""Convolutions of pictures, channels last, by XLA or as one product of shifted views."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Padding = int | tuple[int, int]  # zeros on all sides alike, or (top and left, bottom and right)


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int, padding: Padding, method: str) -> jax.Array:
    """Returns the convolution of x [R, h, w, C] with kernel [k, k, C, C'] as [R, h', w', C'], padded with zeros.

    method "xla" is XLA's convolution; "matmul" gathers the k*k shifted views and multiplies once, which has a much faster gradient
    on CPUs. Both give the same values.
    """
    before, after = (padding, padding) if isinstance(padding, int) else padding
    if method == "xla":
        return lax.conv_general_dilated(x, kernel, (stride, stride), [(before, after)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if method != "matmul":
        raise ValueError(f"model.convolution: found {method!r}, expected 'xla' or 'matmul'")
    size = kernel.shape[0]
    out = [(n + before + after - size) // stride + 1 for n in x.shape[1:3]]
    # A strided convolution is one of stride 1 over cells of stride x stride pixels, with the kernel filled up by zeros: its gradient needs
    # no dilated padding, which CPUs are slow at.
    cells = -(-size // stride)
    needed = [stride * (n + cells - 1) for n in out]
    bottom, right = (n - have - before for n, have in zip(needed, x.shape[1:3], strict=True))
    if before or bottom or right:
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (before, bottom, 0), (before, right, 0), (0, 0, 0)))
    if stride > 1:
        rows, height, width, channels = x.shape
        x = x.reshape(rows, height // stride, stride, width // stride, stride, channels)
        if size == 1:
            x = x[:, :, 0, :, 0]
        else:
            x = x.transpose(0, 1, 3, 2, 4, 5).reshape(rows, height // stride, width // stride, -1)
            filled = jnp.pad(kernel, ((0, cells * stride - size),) * 2 + ((0, 0),) * 2)
            filled = filled.reshape(cells, stride, cells, stride, channels, -1).transpose(0, 2, 1, 3, 4, 5)
            kernel = filled.reshape(cells, cells, stride * stride * channels, -1)
    return _shifted_products(x, kernel)


def _columns(x: jax.Array, size: int) -> jax.Array:
    """Returns the size*size shifted views of x [R, h, w, C] side by side: [R, h-size+1, w-size+1, size*size*C]."""
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    views = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return views[0] if len(views) == 1 else jnp.concatenate(views, -1)


@jax.custom_vjp
def _shifted_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the unpadded convolution of stride 1 as one product of the shifted views of x with the kernel.

    The gradient for x is written as the same kind of product: automatic differentiation would add size*size padded arrays.
    """
    return _columns(x, kernel.shape[0]) @ kernel.reshape(-1, kernel.shape[-1])


def _shifted_products_forward(x, kernel):
    return _shifted_products(x, kernel), (x, kernel)


def _shifted_products_backward(saved, dy):
    x, kernel = saved
    size = kernel.shape[0]
    columns = _columns(x, size)
    dkernel = columns.reshape(-1, columns.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
    around = (size - 1, size - 1)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = _shifted_products(jnp.pad(dy, ((0, 0), around, around, (0, 0))), turned)
    return dx, dkernel.reshape(kernel.shape)


_shifted_products.defvjp(_shifted_products_forward, _shifted_products_backward)
