"""Multi-head attention with OFA's position bias and head scale.

`attention` has one reference and will have named faster implementations; `ModelConfig.attention` names the one that runs, and a
name that cannot run is an error. All take the bias as a typed value (`position_bias.PositionBias`), so that an implementation may
fold, tile or skip it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ofa_jax.models.layers import Linear, dropout, parameter
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
) -> jax.Array:
    """Returns softmax(q k^T + bias) v as [B, H, S, K] in v's dtype; the softmax is taken in `accum`.

    Args:
      q: [B, H, S, K], already scaled. k, v: [B, H, T, K].
      bias: position bias of the S x T pairs, batch dimension B or 1.
      mask: bool [B, T], True = the key may be seen; None lets all be seen.
      causal: query i sees keys 0 .. i only (S == T).
      dropout_rate, key: dropout of the probabilities.
    """
    probabilities = dropout(attention_probabilities(q, k, bias, mask, causal=causal, accum=accum), dropout_rate, key)
    return jnp.einsum("bhst,bhtk->bhsk", probabilities.astype(v.dtype), v)


def attention_probabilities(
    q: jax.Array, k: jax.Array, bias: PositionBias, mask: jax.Array | None, *, causal: bool, accum: np.dtype
) -> jax.Array:
    """Returns softmax(q k^T + bias) as [B, H, S, T] in `accum`; arguments as in `reference_attention`."""
    scores = jnp.einsum("bhsk,bhtk->bhst", q, k, preferred_element_type=accum)
    scores = scores + bias.dense(accum)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, MASKED)
    if causal:
        scores = jnp.where(np.tri(q.shape[2], k.shape[2], dtype=bool), scores, MASKED)
    return jax.nn.softmax(scores, axis=-1)


ATTENTION: dict[str, Callable[..., jax.Array]] = {"reference": reference_attention}


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
        policy: Policy,
        stack: int = 0,
    ):
        if kind not in ATTENTION:
            raise ValueError(f"model.attention: found {kind!r}, expected one of {sorted(ATTENTION)}")
        into, out = ("width", "heads"), ("heads", "width")
        self.query = Linear(width, width, into, std=std, policy=policy, stack=stack)
        self.key = Linear(width, width, into, std=std, policy=policy, stack=stack)
        self.value = Linear(width, width, into, std=std, policy=policy, stack=stack)
        self.out = Linear(width, width, out, std=std, policy=policy, stack=stack)
        self.head_scale = parameter((num_heads,), ("heads",), value=1.0, policy=policy, stack=stack)
        self.num_heads, self.scale = num_heads, (width // num_heads * scale_factor) ** -0.5
        self.kind, self.rate, self.accum = kind, rate, policy.accum

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
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the attention output [B, S, D] of queries from x [B, S, D] on `keys_values`; see `reference_attention`."""
        k, v = keys_values
        mixed = ATTENTION[self.kind](self.queries(x), k, v, bias, mask, causal=causal, accum=self.accum, dropout_rate=self.rate, key=key)
        mixed = mixed * self.head_scale[...].astype(mixed.dtype)[:, None, None]
        return self.out(mixed.swapaxes(1, 2).reshape(x.shape))
