"""The small modules all stacks are made of. They hold `nnx.Param` and static numbers only; keys are arguments.

Conventions, stated once:
- A kernel is stored `(in, out)`. Every parameter carries the metadata `axes`, one logical name (or None) per dimension; `parallel`
  maps names to mesh axes. `stack=n` gives each parameter a leading axis `layers` of n equal layers.
- A module casts its parameters to the policy's compute dtype where it uses them; statistics of norms are taken in `policy.accum`.
- `key=None` means deterministic: no dropout, no dropped paths. Else it is one key, or one for each row (the first axis).
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
from jax.ad_checkpoint import checkpoint_name

from ofa_jax.models import bits
from ofa_jax.models.precision import Policy
from ofa_jax.parallel import layout

Axes = tuple[str | None, ...]

# Names, in policies of `jax.checkpoint`, of what is kept for the gradient. JAX's own policies of products do not look into functions
# with gradients of their own, where ours stand.
PRODUCT = "product"  # what `Linear` returns
ATTENDED = "attended"  # what a faster attention asks for


def split_key(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """Returns `num` independent keys, or `num` times None when there is none. A key is one, or one a row, [Q]; so are those returned."""
    if key is None:
        return [None] * num
    if key.ndim == 0:
        return list(jax.random.split(key, num))
    return list(jnp.moveaxis(jax.vmap(lambda one: jax.random.split(one, num))(key), 1, 0))


def fold_key(key: jax.Array, number: jax.Array | int) -> jax.Array:
    """Returns the key, or the keys of the rows, with `number` folded in."""
    return jax.random.fold_in(key, number) if key.ndim == 0 else jax.vmap(lambda one: jax.random.fold_in(one, number))(key)


def row_keys(key: jax.Array, num: int) -> jax.Array:
    """Returns keys [num] of the rows that are traced, pure functions of `key` and of a row's place in its block: neither devices nor
    micro-batches change what a row draws."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(layout.first_row(num) + jnp.arange(num))


def draw_mask(key: jax.Array, rate: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
    """Returns bool `shape`, True with probability `rate`: from one key, or row by row from keys [shape[0]]."""
    if key.ndim == 0:
        return jax.random.bernoulli(key, rate, shape)
    return jax.vmap(lambda one: jax.random.bernoulli(one, rate, shape[1:]))(key)


def parameter(
    shape: tuple[int, ...], axes: Axes, *, policy: Policy, stack: int = 0, value: float = 0.0, std: float | None = None
) -> nnx.Param:
    """Returns a parameter filled with `value`, to be drawn from N(0, std) by `draw_params` if `std` is given.

    Construction and drawing are apart, so that structure and shapes cost nothing and drawing is one short program.
    """
    if stack:
        shape, axes = (stack, *shape), ("layers", *axes)
    return nnx.Param(jnp.full(shape, value, policy.param), axes=axes, std=std)


def draw_params(params: nnx.State, key: jax.Array) -> nnx.State:
    """Returns `params` with every tensor that has a `std` drawn from N(0, std); each is a pure function of key, shapes and order.

    Small tensors are cut from one long draw: compiling one generator per tensor took ten seconds for a small model.
    """
    paths = [(path, param) for path, param in nnx.to_flat_state(params) if param.std is not None]
    small = [(path, param) for path, param in paths if param.size <= _LARGE]
    flat = jax.random.normal(key, (sum(param.size for _, param in small),), paths[0][1].dtype)
    drawn, start = {}, 0
    for path, param in small:
        drawn[path] = flat[start : start + param.size].reshape(param.shape)
        start += param.size
    for index, (path, param) in enumerate(paths):
        if path not in drawn:
            drawn[path] = jax.random.normal(jax.random.fold_in(key, index), param.shape, param.dtype)
    flat_state = [(path, param.replace(drawn[path] * param.std) if path in drawn else param) for path, param in nnx.to_flat_state(params)]
    return nnx.from_flat_state(flat_state)


_LARGE = 2**20  # elements above which a tensor gets its own draw, so that no long vector fills the memory of one device


class Linear(nnx.Module):
    """`x @ kernel + bias`; kernel ~ N(0, std), bias 0 (the BERT-style initialisation that ends OFA's constructor).

    With `lora` = (rank, scale), `scale * (x @ down) @ up` is added, which is 0 at the start.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        axes: Axes,
        *,
        std: float,
        policy: Policy,
        stack: int = 0,
        lora: tuple[int, float] = (0, 0.0),
    ):
        self.kernel = parameter((num_in, num_out), axes, std=std, policy=policy, stack=stack)
        self.bias = parameter((num_out,), axes[1:], policy=policy, stack=stack)
        self.compute, self.accum = policy.compute, policy.accum
        self.updated = lora[0] > 0
        if self.updated:
            self.lora = LowRank(num_in, num_out, axes, rank=lora[0], scale=lora[1], policy=policy, stack=stack)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., num_in] -> [..., num_out] in the compute dtype."""
        x = x.astype(self.compute)
        y = linear(x, self.kernel[...], self.bias[...], self.accum)
        return checkpoint_name(y + self.lora(x) if self.updated else y, PRODUCT)


class LowRank(nnx.Module):
    """The update of a matrix by a product of two thin ones (LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1): down ~ N(0, 1 / num_in),
    up 0."""

    def __init__(self, num_in: int, num_out: int, axes: Axes, *, rank: int, scale: float, policy: Policy, stack: int = 0):
        self.down = parameter((num_in, rank), (axes[0], None), std=num_in**-0.5, policy=policy, stack=stack)
        self.up = parameter((rank, num_out), (None, axes[1]), policy=policy, stack=stack)
        self.scale, self.accum = scale, policy.accum

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., num_in] -> [..., num_out] in x's dtype."""
        down, up = self.down[...], self.up[...]
        hidden = linear(x, down, jnp.zeros(down.shape[-1:], down.dtype), self.accum)
        return linear(self.scale * hidden, up, jnp.zeros(up.shape[-1:], up.dtype), self.accum)


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
    x = lax.optimization_barrier(x)  # else XLA computes what made x again, in the transposed order of the kernel's gradient
    dx = jnp.einsum("...f,df->...d", dy, kernel.astype(dy.dtype))
    dkernel = jnp.einsum("...d,...f->df", x, dy, preferred_element_type=accum)
    dbias = jnp.sum(dy.astype(accum), tuple(range(dy.ndim - 1)))
    return dx, dkernel.astype(kernel.dtype), dbias.astype(kernel.dtype)


linear.defvjp(_linear_forward, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def tied_logits(hidden: jax.Array, table: jax.Array, accum: np.dtype) -> jax.Array:
    """Returns `hidden @ table.T` in `accum`, with operands in hidden's dtype: hidden [..., D], table [V, D] -> [..., V].

    The gradient of the scores is rounded to hidden's dtype before its two products, which would else run in f32, and written out
    once: fused into both products, XLA computes the softmax's gradient twice, once in a transposed order.
    """
    return jnp.einsum("...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=accum)


def _tied_logits_forward(hidden, table, accum):
    return tied_logits(hidden, table, accum), (hidden, table)


def _tied_logits_backward(accum, saved, dy):
    hidden, table = saved
    dy = lax.optimization_barrier(dy.astype(hidden.dtype))
    dhidden = jnp.einsum("...v,vd->...d", dy, table.astype(dy.dtype))
    dtable = jnp.einsum("...v,...d->vd", dy, hidden, preferred_element_type=accum)
    return dhidden, dtable.astype(table.dtype)


tied_logits.defvjp(_tied_logits_forward, _tied_logits_backward)


class LayerNorm(nnx.Module):
    """Affine LayerNorm over the last axis with statistics in `policy.accum`; scale 1, bias 0 at the start."""

    def __init__(self, width: int, *, eps: float, policy: Policy, stack: int = 0):
        self.scale = parameter((width,), ("norm",), value=1.0, policy=policy, stack=stack)
        self.bias = parameter((width,), ("norm",), policy=policy, stack=stack)
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
    dy_normed = dy * normed
    # Means over the width as products with the scale: reductions of `dy * scale` would make XLA write the broadcast scale out on CPUs.
    weight = (scale.astype(accum) / scale.size)[:, None]
    mean_dn = jnp.matmul(dy, weight, precision=lax.Precision.HIGHEST)
    mean_dn_normed = jnp.matmul(dy_normed, weight, precision=lax.Precision.HIGHEST)
    dx = (dy * scale.astype(accum) - mean_dn - normed * mean_dn_normed) * rstd
    return dx.astype(x.dtype), jnp.sum(dy_normed, batch).astype(scale.dtype), jnp.sum(dy, batch).astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class Embedding(nnx.Module):
    """A table of rows ~ N(0, std), looked up by id."""

    def __init__(self, num: int, width: int, axes: Axes, *, std: float, policy: Policy):
        self.table = parameter((num, width), axes, std=std, policy=policy)
        self.compute = policy.compute

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
    return _dropout_again(x, key, rate) if bits.is_cheap(key) else _dropped(x, key, rate)


def _dropped(x: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    keep = draw_mask(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout_again(x: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """The same, whose backward pass makes the mask again: automatic differentiation would keep it."""
    return _dropped(x, key, rate)


def _dropout_forward(x, key, rate):
    return _dropped(x, key, rate), key


def _dropout_backward(rate, key, dy):
    return _dropped(dy, bits.again(key), rate), None


_dropout_again.defvjp(_dropout_forward, _dropout_backward)


def drop_path(x: jax.Array, rate: jax.Array | float, key: jax.Array | None) -> jax.Array:
    """Returns x with whole samples (first axis) set to 0 with probability `rate`, the rest divided by 1 - rate (stochastic depth)."""
    if key is None:
        return x
    keep_rate = 1.0 - jnp.asarray(rate, jnp.float32)
    keep = draw_mask(key, keep_rate, (x.shape[0],)).astype(jnp.float32) / keep_rate
    return x * keep.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))


class FeedForward(nnx.Module):
    """OFA's feed-forward branch: linear, exact GELU, LayerNorm of the inner width ("scale_fc" of the official code), linear."""

    def __init__(self, width: int, inner: int, *, eps: float, rate: float, std: float, policy: Policy, stack: int = 0):
        self.expand = Linear(width, inner, ("width", "ffn"), std=std, policy=policy, stack=stack)
        self.norm = LayerNorm(inner, eps=eps, policy=policy, stack=stack)
        self.contract = Linear(inner, width, ("ffn", "width"), std=std, policy=policy, stack=stack)
        self.rate, self.accum = rate, policy.accum

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """x [..., width] -> [..., width]; `key` drops activations with the rate given at construction."""
        return self.contract(self.norm(dropout(gelu(self.expand(x), self.accum), self.rate, key)))


class Adapter(nnx.Module):
    """A bottleneck with its own residual, `x + up(relu(down(x)))`: OFA's adapter, behind the dropout of the feed-forward branch."""

    def __init__(self, width: int, inner: int, *, std: float, policy: Policy, stack: int = 0):
        self.down = Linear(width, inner, ("width", None), std=std, policy=policy, stack=stack)
        self.up = Linear(inner, width, (None, "width"), std=std, policy=policy, stack=stack)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] -> [..., width]."""
        return x + self.up(jax.nn.relu(self.down(x)))


def drop_path_rates(rate: float, num_layers: int) -> np.ndarray:
    """Returns the rate of each layer: linspace(0, rate), so that layer 0 never drops."""
    return np.linspace(0.0, rate, num_layers, dtype=np.float32)


REMAT: dict[str, Any] = {  # what is kept, by `model.remat`
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(layout.RECEIVED, ATTENDED, PRODUCT),
    "full": jax.checkpoint_policies.save_only_these_names(layout.RECEIVED),
}


def run_layers(
    layers: nnx.Module, step: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, xs: Any, *, num: int, mode: str, remat: str
) -> tuple[Any, Any]:
    """Runs `carry, y = step(layer, carry, x)` over `num` equal layers stored stacked in `layers`.

    Args:
      layers: a module whose parameters have a leading axis of length `num`.
      step: called with the module of one layer (no leading axis), the carry and that layer's slice of `xs`.
      xs: a pytree of arrays with leading axis `num` (or None).
      mode: "scan" (one compiled body) or "unroll" (the stack is indexed statically; faster on GPU and CPU).
      remat: "none"; "dots" keeps only what `Linear` returns and what a faster attention asks for; "full" keeps only the carry.
        Both keep what came from other devices (`layout.received`), which is small and would be sent again.

    Returns:
      The last carry and the stacked `y`s.
    """
    graphdef, params = nnx.split(layers)

    def body(carry, slices):
        layer_params, x = slices
        return step(nnx.merge(graphdef, layer_params), carry, x)

    if remat not in REMAT:
        raise ValueError(f"model.remat: found {remat!r}, expected one of {', '.join(REMAT)}")
    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=mode != "scan")
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
