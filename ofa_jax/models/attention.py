"""Multi-head attention with OFA's position bias and head scale.

There is one reference and there are faster implementations, by name; `ModelConfig.attention` names the one that trains, and a name that
cannot run is an error. Where nothing is random, in evaluation and generation, the reference runs: its programs are cut by XLA for any
mesh. All take the bias as a typed value (`position_bias.PositionBias`), so that an implementation may make it where it is added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ofa_jax.models.layers import Embedding, Linear, dropout, parameter
from ofa_jax.models.position_bias import PositionBias
from ofa_jax.models.precision import Policy

# A masked score is this number, not -inf: its probability is exactly 0 beside any real key, and a padding row whose keys are all
# masked gets finite junk instead of a NaN that would poison the whole batch through 0 * NaN.
MASKED = -1e30


def reference_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: PositionBias,
    mask: jax.Array | None,
    *,
    causal: bool,
    accum: np.dtype,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    keep: bool = True,
) -> jax.Array:
    """Returns softmax(q k^T + bias) v as [B, H, S, K] in v's dtype; the softmax is taken in `accum`.

    Args:
      q: [B, H, S, K], already scaled. k, v: [B, H, T, K].
      bias: position bias of the S x T pairs, batch dimension B or 1.
      mask: bool [B, T], True = the key may be seen, or [B or 1, S, T] for each query by itself; None lets all be seen.
      causal: query i sees keys 0 .. T - S + i only: the last S keys are its own sequence, any before them a prompt.
      dropout_rate, key: dropout of the probabilities.
      keep: whether the gradient may keep the probabilities; here they are kept unless the caller rematerialises.
    """
    del keep
    probabilities = dropout(attention_probabilities(q, k, bias, mask, causal=causal, accum=accum), dropout_rate, key)
    return jnp.einsum("bhst,bhtk->bhsk", probabilities.astype(v.dtype), v)


def attention_probabilities(
    q: jax.Array, k: jax.Array, bias: PositionBias, mask: jax.Array | None, *, causal: bool, accum: np.dtype
) -> jax.Array:
    """Returns softmax(q k^T + bias) as [B, H, S, T] in `accum`; arguments as in `reference_attention`."""
    scores = jnp.einsum("bhsk,bhtk->bhst", q, k, preferred_element_type=accum)
    scores = scores + bias.dense(accum)
    if mask is not None:
        scores = jnp.where(mask[:, None, None] if mask.ndim == 2 else mask[:, None], scores, MASKED)
    if causal:
        scores = jnp.where(np.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2], dtype=bool), scores, MASKED)
    return jax.nn.softmax(scores, axis=-1)


KeysValues = tuple[jax.Array, jax.Array]


def _pallas_attention(*arguments: Any, **options: Any) -> jax.Array:
    from ofa_jax.models.attention_tpu import pallas_attention  # Pallas takes a second to import

    return pallas_attention(*arguments, **options)


def _cudnn_attention(*arguments: Any, **options: Any) -> jax.Array:
    from ofa_jax.models.attention_cudnn import cudnn_attention

    return cudnn_attention(*arguments, **options)


ATTENTION: dict[str, Callable[..., jax.Array]] = {
    "reference": reference_attention, "cudnn": _cudnn_attention, "pallas": _pallas_attention,
}  # fmt: skip


def is_fused(name: str, key: jax.Array | None) -> bool:
    """Returns whether the attention called `name` makes the bias itself; key: of its dropout, None where nothing is random."""
    return key is not None and name == "pallas"


class Attention(nnx.Module):
    """Projections with biases around `attention`, with OFA's scale (2 K)^-0.5 on the query and one learned scale per head."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        scale_factor: float,
        rate: float,
        std: float,
        kind: str,
        keep: bool,
        policy: Policy,
        stack: int = 0,
        lora: tuple[int, float] = (0, 0.0),
    ):
        """keep: whether the gradient may keep the probabilities, if it need not. lora: (rank, scale) of an update of the query and value
        projections (`Linear`)."""
        if kind not in ATTENTION:
            raise ValueError(f"model.attention: found {kind!r}, expected one of {sorted(ATTENTION)}")
        into, out = ("width", "heads"), ("heads", "width")
        self.query = Linear(width, width, into, std=std, policy=policy, stack=stack, lora=lora)
        self.key = Linear(width, width, into, std=std, policy=policy, stack=stack)
        self.value = Linear(width, width, into, std=std, policy=policy, stack=stack, lora=lora)
        self.out = Linear(width, width, out, std=std, policy=policy, stack=stack)
        self.head_scale = parameter((num_heads,), ("heads",), value=1.0, policy=policy, stack=stack)
        self.num_heads, self.scale = num_heads, (width // num_heads * scale_factor) ** -0.5
        self.kind, self.keep, self.rate, self.accum = kind, keep, rate, policy.accum

    def split_heads(self, x: jax.Array) -> jax.Array:
        """x [B, S, D] -> [B, H, S, K]; feature h*K + k is head h."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)

    def queries(self, x: jax.Array) -> jax.Array:
        """x [B, S, D] -> scaled queries [B, H, S, K]."""
        return self.split_heads(self.query(x) * self.scale)

    def keys_values(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """memory [B, T, D] -> keys and values, each [B, H, T, K]."""
        return self.split_heads(self.key(memory)), self.split_heads(self.value(memory))

    def __call__(
        self,
        x: jax.Array,
        keys_values: tuple[jax.Array, jax.Array],
        bias: PositionBias,
        mask: jax.Array | None,
        *,
        causal: bool = False,
        prompt: KeysValues | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the attention output [B, S, D] of queries from x [B, S, D] on `keys_values`; see `reference_attention`.

        `prompt`: further keys and values [B or 1, H, P, K] that every query sees, without position bias.
        """
        k, v = keys_values
        if prompt is not None:
            length = prompt[0].shape[2]
            k, v = (
                jnp.concatenate([jnp.broadcast_to(p, (x.shape[0], *p.shape[1:])), own], 2) for p, own in zip(prompt, (k, v), strict=True)
            )
            bias = bias.behind(length)
            mask = None if mask is None else jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(length, 0)], constant_values=True)
        mixed = ATTENTION[self.kind if key is not None else "reference"](
            self.queries(x), k, v, bias, mask, causal=causal, accum=self.accum, dropout_rate=self.rate, key=key, keep=self.keep
        )
        mixed = mixed * self.head_scale[...].astype(mixed.dtype)[:, None, None]
        return self.out(mixed.swapaxes(1, 2).reshape(x.shape))


class Prompt(nnx.Module):
    """Learned keys and values for the self attention of every layer (prefix tuning): one row of the table holds a place's 2 N vectors."""

    def __init__(self, length: int, num_layers: int, width: int, num_heads: int, *, rate: float, std: float, policy: Policy):
        self.embedding = Embedding(length, num_layers * 2 * width, ("positions", None), std=std, policy=policy)
        self.num_layers, self.num_heads, self.rate = num_layers, num_heads, rate

    def __call__(self, num: int, *, key: jax.Array | None) -> KeysValues:
        """Returns keys and values of all layers, each [N, B, H, P, K], with B = `num` under dropout (`key`) and 1 without."""
        table = self.embedding.table[...].astype(self.embedding.compute)
        length = table.shape[0]
        if key is not None:
            table = dropout(jnp.broadcast_to(table, (num, *table.shape)), self.rate, key)
        parts = table.reshape(-1, length, self.num_layers, 2, self.num_heads, table.shape[-1] // (2 * self.num_layers * self.num_heads))
        keys, values = parts.transpose(3, 2, 0, 4, 1, 5)
        return keys, values
