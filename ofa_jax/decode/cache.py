"""One step of generation with cached keys and values, on top of the model's decoder.

Cross-attention keys exist once a sequence: the hypotheses of a beam are further queries of them. Self-attention keys move with the
beam, the whole cache by one gather a step, also when no beam moved: only the device knows, and a branch would copy the cache too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ofa_jax.models.decoder import Cache, CodeRows
from ofa_jax.models.encoder import Encoded
from ofa_jax.models.ofa import OFA


def init_cache(model: OFA, encoded: Encoded, length: int, *, code_mask: jax.Array | None, code_rows: CodeRows, beams: int = 1) -> Cache:
    """Returns an empty cache for `length` inputs of `beams` hypotheses a sequence; cross-attention keys are computed here, once."""
    return model.decoder.start(encoded, length, code_mask=code_mask, code_rows=code_rows, beams=beams)


def decode_step(
    model: OFA, cache: Cache, ids: jax.Array, place: jax.Array, *, code_mask: jax.Array | None, code_rows: CodeRows
) -> tuple[jax.Array, Cache]:
    """Feeds ids [B] at `place` (int scalar, counted from 0 = BOS) and returns the logits [B, padded V] of the next token.

    B is Q times the cache's hypotheses a sequence; `code_mask` is [Q] as in `OFA.decode`.
    """
    embedded = model.embed(ids)
    hidden, cache = model.decoder.step(embedded, ids, place, cache, code_mask=code_mask, code_rows=code_rows)
    return model.logits(hidden), cache


def reorder(cache: Cache, parents: jax.Array) -> Cache:
    """Returns the cache in which hypothesis k of sequence q goes on from hypothesis `parents[q, k]`; parents is int32 [Q, beams]."""

    def move(x: jax.Array, axis: int) -> jax.Array:
        grouped = x.reshape(*x.shape[:axis], *parents.shape, *x.shape[axis + 1 :])
        # Mapped over sequences, the gather is local to each: a sharded batch moves nothing between devices.
        take = jax.vmap(lambda rows, chosen: jnp.take(rows, chosen, axis), in_axes=(axis, 0), out_axes=axis)
        return take(grouped, parents).reshape(x.shape)

    return cache._replace(self_keys=move(cache.self_keys, 1), self_values=move(cache.self_values, 1), self_mask=move(cache.self_mask, 0))
