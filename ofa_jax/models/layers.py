"""The small modules all stacks are made of. They hold `nnx.Param` and static numbers only; keys are arguments.

Conventions, stated once:
- A kernel is stored `(in, out)`. Every parameter carries the metadata `axes`, one logical name (or None) per dimension; `parallel`
  maps names to mesh axes. `stack=n` gives each parameter a leading axis `layers` of n equal layers.
- A module casts its parameters to the policy's compute dtype where it uses them; statistics of norms are taken in `policy.accum`.
- `key=None` means deterministic: no dropout, no dropped paths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ofa_jax.models.precision import Policy

Axes = tuple[str | None, ...]


class Keys:
    """Hands out one fresh key per call, in program order: `keys = Keys(key); a, b = keys(), keys()`."""

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def __call__(self) -> jax.Array:
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


def split_key(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """Returns `num` independent keys, or `num` times None when there is none."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def normal_param(keys: Keys, shape: tuple[int, ...], axes: Axes, *, std: float, policy: Policy, stack: int = 0) -> nnx.Param:
    """Returns a parameter ~ N(0, std), with a leading `layers` axis when `stack` is given."""
    shape, axes = _stacked(shape, axes, stack)
    return nnx.Param(std * jax.random.normal(keys(), shape, policy.param), axes=axes)


def constant_param(value: float, shape: tuple[int, ...], axes: Axes, *, policy: Policy, stack: int = 0) -> nnx.Param:
    """Returns a parameter filled with `value`, with a leading `layers` axis when `stack` is given."""
    shape, axes = _stacked(shape, axes, stack)
    return nnx.Param(jnp.full(shape, value, policy.param), axes=axes)


def _stacked(shape: tuple[int, ...], axes: Axes, stack: int) -> tuple[tuple[int, ...], Axes]:
    return ((stack, *shape), ("layers", *axes)) if stack else (shape, axes)


class Linear(nnx.Module):
    """`x @ kernel + bias`; kernel ~ N(0, std), bias 0 (the BERT-style initialisation that ends OFA's constructor)."""

    def __init__(self, keys: Keys, num_in: int, num_out: int, axes: Axes, *, std: float, policy: Policy, stack: int = 0):
        self.kernel = normal_param(keys, (num_in, num_out), axes, std=std, policy=policy, stack=stack)
        self.bias = constant_param(0.0, (num_out,), axes[1:], policy=policy, stack=stack)
        self.compute, self.accum = policy.compute, policy.accum

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., num_in] -> [..., num_out] in the compute dtype."""
        return linear(x.astype(self.compute), self.kernel[...], self.bias[...], self.accum)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array, accum: np.dtype) -> jax.Array:
    """Returns `x @ kernel + bias` in x's dtype.

    The gradients of kernel and bias are summed in `accum`: automatic differentiation would round a bf16 kernel gradient to bf16, and
    it sums the bias gradient in bf16, which XLA does slowly on CPUs.
    """
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def _linear_forward(x, kernel, bias, accum):
    return linear(x, kernel, bias, accum), (x, kernel)


def _linear_backward(accum, saved, dy):
    x, kernel = saved
    dx = jnp.einsum("...f,df->...d", dy, kernel.astype(dy.dtype))
    dkernel = jnp.einsum("...d,...f->df", x, dy, preferred_element_type=accum)
    dbias = jnp.sum(dy.astype(accum), tuple(range(dy.ndim - 1)))
    return dx, dkernel.astype(kernel.dtype), dbias.astype(kernel.dtype)


linear.defvjp(_linear_forward, _linear_backward)


class LayerNorm(nnx.Module):
    """Affine LayerNorm over the last axis with statistics in `policy.accum`; scale 1, bias 0 at the start."""

    def __init__(self, width: int, *, eps: float, policy: Policy, stack: int = 0):
        self.scale = constant_param(1.0, (width,), ("norm",), policy=policy, stack=stack)
        self.bias = constant_param(0.0, (width,), ("norm",), policy=policy, stack=stack)
        self.eps, self.compute, self.accum = eps, policy.compute, policy.accum

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] -> the same shape in the compute dtype."""
        return layer_norm(x.astype(self.compute), self.scale[...], self.bias[...], self.eps, self.accum)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float, accum: np.dtype) -> jax.Array:
    """Returns `(x - mean) / sqrt(var + eps) * scale + bias` over the last axis, in x's dtype, with arithmetic in `accum`.

    The written-out gradient keeps x and two numbers a row; automatic differentiation would keep several f32 copies of x.
    """
    return _layer_norm_forward(x, scale, bias, eps, accum)[0]


def _layer_norm_forward(x, scale, bias, eps, accum):
    wide = x.astype(accum)
    mean = jnp.mean(wide, -1, keepdims=True)
    rstd = lax.rsqrt(jnp.mean(jnp.square(wide - mean), -1, keepdims=True) + eps)
    y = (wide - mean) * rstd * scale.astype(accum) + bias.astype(accum)
    return y.astype(x.dtype), (x, scale, mean, rstd)


def _layer_norm_backward(eps, accum, saved, dy):
    x, scale, mean, rstd = saved
    dy, normed = dy.astype(accum), (x.astype(accum) - mean) * rstd
    batch = tuple(range(x.ndim - 1))
    dbias, dscale = jnp.sum(dy, batch), jnp.sum(dy * normed, batch)
    dn = dy * scale.astype(accum)
    dx = (dn - jnp.mean(dn, -1, keepdims=True) - normed * jnp.mean(dn * normed, -1, keepdims=True)) * rstd
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class Embedding(nnx.Module):
    """A table of rows ~ N(0, std), looked up by id."""

    def __init__(self, keys: Keys, num: int, width: int, axes: Axes, *, std: float, policy: Policy):
        self.table = normal_param(keys, (num, width), axes, std=std, policy=policy)
        self.compute = policy.compute

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids int [...] -> rows [..., width] in the compute dtype. Ids are trusted: JAX clips those outside the table."""
        return jnp.take(self.table[...], ids, axis=0, mode="clip").astype(self.compute)

    def first(self, num: int) -> jax.Array:
        """Returns rows 0 .. num-1 as [num, width] in the compute dtype; raises ValueError if the table is shorter."""
        if num > self.table.shape[0]:
            raise ValueError(f"positions: found a length of {num}, expected at most {self.table.shape[0]}, the rows of the position table")
        return self.table[:num].astype(self.compute)


def gelu(x: jax.Array, accum: np.dtype) -> jax.Array:
    """Returns the exact (erf) GELU of x, computed in `accum`, in x's dtype. OFA does not use the tanh approximation."""
    wide = x.astype(accum)
    return (0.5 * wide * (1.0 + lax.erf(wide * np.sqrt(0.5).astype(accum)))).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Returns x with entries set to 0 with probability `rate` (static) and the rest divided by 1 - rate; x itself without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def drop_path(x: jax.Array, rate: jax.Array | float, key: jax.Array | None) -> jax.Array:
    """Returns x with whole samples (first axis) set to 0 with probability `rate`, the rest divided by 1 - rate (stochastic depth)."""
    if key is None:
        return x
    keep_rate = 1.0 - jnp.asarray(rate, jnp.float32)
    keep = jax.random.bernoulli(key, keep_rate, (x.shape[0],)).astype(jnp.float32) / keep_rate
    return x * keep.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))


class FeedForward(nnx.Module):
    """OFA's feed-forward branch: linear, exact GELU, LayerNorm of the inner width ("scale_fc" of the official code), linear."""

    def __init__(
        self, keys: Keys, width: int, inner: int, *, eps: float, rate: float, std: float, policy: Policy, stack: int = 0
    ):
        self.expand = Linear(keys, width, inner, ("width", "ffn"), std=std, policy=policy, stack=stack)
        self.norm = LayerNorm(inner, eps=eps, policy=policy, stack=stack)
        self.contract = Linear(keys, inner, width, ("ffn", "width"), std=std, policy=policy, stack=stack)
        self.rate, self.accum = rate, policy.accum

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """x [..., width] -> [..., width]; `key` drops activations with the rate given at construction."""
        return self.contract(self.norm(dropout(gelu(self.expand(x), self.accum), self.rate, key)))


def drop_path_rates(rate: float, num_layers: int) -> np.ndarray:
    """Returns the rate of each layer: linspace(0, rate), so that layer 0 never drops."""
    return np.linspace(0.0, rate, num_layers, dtype=np.float32)


def run_layers(
    layers: nnx.Module, step: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, xs: Any, *, num: int, mode: str, remat: str
) -> tuple[Any, Any]:
    """Runs `carry, y = step(layer, carry, x)` over `num` equal layers stored stacked in `layers`.

    Args:
      layers: a module whose parameters have a leading axis of length `num`.
      step: called with the module of one layer (no leading axis), the carry and that layer's slice of `xs`.
      xs: a pytree of arrays with leading axis `num` (or None).
      mode: "scan" (one compiled body) or "unroll" (the stack is indexed statically; faster on GPU and CPU).
      remat: "none"; "dots" keeps only products without batch dimensions for the gradient; "full" keeps only the carry.

    Returns:
      The last carry and the stacked `y`s.
    """
    graphdef, params = nnx.split(layers)

    def body(carry, slices):
        layer_params, x = slices
        return step(nnx.merge(graphdef, layer_params), carry, x)

    if remat == "dots":
        body = jax.checkpoint(body, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable, prevent_cse=mode != "scan")
    elif remat == "full":
        body = jax.checkpoint(body, prevent_cse=mode != "scan")
    elif remat != "none":
        raise ValueError(f"model.remat: found {remat!r}, expected 'none', 'dots' or 'full'")
    if mode == "scan":
        return lax.scan(body, carry, (params, xs), length=num)
    if mode != "unroll":
        raise ValueError(f"model.layers: found {mode!r}, expected 'scan' or 'unroll'")
    # One unstack per tensor: its transpose is one concatenation, while `num` slices would transpose to `num` padded adds.
    leaves, treedef = jax.tree.flatten((params, xs))
    slices = zip(*(lax.unstack(leaf) for leaf in leaves), strict=True)
    ys = []
    for one in slices:
        carry, y = body(carry, jax.tree.unflatten(treedef, one))
        ys.append(y)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *ys)
