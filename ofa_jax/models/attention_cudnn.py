"""Attention for NVIDIA GPUs by cuDNN's fused kernel, which takes the bias of all pairs, and masks as a part of it.

The kernel wants even lengths, [B, S, H, K] and a bias in the arguments' dtype whose last two dimensions are whole; an odd length gets one
place more, which no query sees. Scores and softmax are in f32 inside; the bias is rounded to the arguments' dtype.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.models.attention import MASKED
from ofa_jax.models.position_bias import PositionBias


def cudnn_attention(
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
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Returns softmax(q k^T + bias) v as [B, H, S, K] in v's dtype, as `attention.reference_attention` does and with its arguments.

    implementation: "xla" is the same by JAX's plain operations, on any device. Raises ValueError for dropout of probabilities, and for
    arguments in another dtype than bf16, which cuDNN has no kernel for.
    """
    del keep, accum  # the kernel computes probabilities again, and its softmax is in f32
    if key is not None and dropout_rate:
        raise ValueError(f"model.attention_dropout: found {dropout_rate} with model.attention=cudnn, expected 0")
    if implementation == "cudnn" and q.dtype != jnp.bfloat16:
        raise ValueError(f"precision: found products in {q.dtype} with model.attention=cudnn, expected bfloat16 (precision=bf16)")
    queries, keys = q.shape[2], k.shape[2]
    added = bias.dense(np.dtype(np.float32))
    if mask is not None:
        added = jnp.where(mask[:, None, None] if mask.ndim == 2 else mask[:, None], added, MASKED)
    if causal:  # cuDNN's own mask is aligned to the first key where lengths differ
        added = jnp.where(np.tri(queries, keys, keys - queries, dtype=bool), added, MASKED)
    more = (queries % 2, keys % 2)
    added = jnp.pad(added, ((0, 0), (0, 0), (0, more[0]), (0, 0)))
    added = jnp.pad(added, ((0, 0), (0, 0), (0, 0), (0, more[1])), constant_values=MASKED)

    def place(x: jax.Array, extra: int) -> jax.Array:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, extra), (0, 0), (0, 0)))

    out = jax.nn.dot_product_attention(
        place(q, more[0]), place(k, more[1]), place(v, more[1]), added.astype(q.dtype), scale=1.0, implementation=implementation
    )
    return out[:, :queries].swapaxes(1, 2)
