"""One step of generation with cached keys and values, on top of the model's decoder."""

from __future__ import annotations

import jax

from ofa_jax.models.decoder import Cache, CodeRows
from ofa_jax.models.encoder import Encoded
from ofa_jax.models.ofa import OFA


def init_cache(model: OFA, encoded: Encoded, length: int, *, code_mask: jax.Array | None, code_rows: CodeRows) -> Cache:
    """Returns an empty cache for `length` decoder inputs; cross-attention keys and values are computed here, once."""
    return model.decoder.start(encoded, length, code_mask=code_mask, code_rows=code_rows)


def decode_step(
    model: OFA, cache: Cache, ids: jax.Array, place: jax.Array, *, code_mask: jax.Array | None, code_rows: CodeRows
) -> tuple[jax.Array, Cache]:
    """Feeds ids [Q] at `place` (int scalar, counted from 0 = BOS) and returns the logits [Q, padded V] of the next token."""
    embedded = model.embedding(ids)
    hidden, cache = model.decoder.step(embedded, ids, place, cache, code_mask=code_mask, code_rows=code_rows)
    return model.logits(hidden), cache
