"""Generation. Everything has a static shape and runs inside one jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID
from ofa_jax.decode.cache import decode_step, init_cache
from ofa_jax.models.decoder import CodeRows
from ofa_jax.models.encoder import Encoded
from ofa_jax.models.ofa import NEVER, OFA


def greedy(
    model: OFA,
    encoded: Encoded,
    code_mask: jax.Array | None,
    *,
    max_len: int,
    min_len: int = 0,
    allowed: tuple[int, int] | None = None,
    code_rows: CodeRows | None = None,
) -> jax.Array:
    """Returns the most probable token at every place as int32 [Q, max_len]: no BOS, EOS included, PAD behind it.

    A row that has not ended after `max_len` tokens has no EOS. The loop stops when all rows have ended.

    Args:
      code_mask, code_rows: as in `OFA.decode`.
      min_len: EOS cannot be chosen before this many tokens.
      allowed: static half-open range of ids; of the others only the four special ids may be chosen (OFA's constraint range).
    """
    rows = code_rows or ("none" if code_mask is None else "mixed")
    num, size = encoded.states.shape[0], model.vocab.padded_size
    banned = np.zeros(size, np.float32)
    banned[PAD_ID] = NEVER
    if allowed is not None:
        banned[4 : allowed[0]] = NEVER
        banned[allowed[1] :] = NEVER
    too_early = np.zeros(size, np.float32)
    too_early[EOS_ID] = NEVER

    def unfinished(state):
        place, _, _, ended, _ = state
        return (place < max_len) & ~jnp.all(ended)

    def extend(state):
        place, ids, last, ended, cache = state
        logits, cache = decode_step(model, cache, last, place, code_mask=code_mask, code_rows=rows)
        logits = logits + banned + jnp.where(place < min_len, too_early, 0.0)
        chosen = jnp.where(ended, PAD_ID, jnp.argmax(logits, -1)).astype(jnp.int32)
        ids = lax.dynamic_update_slice_in_dim(ids, chosen[:, None], place, 1)
        return place + 1, ids, chosen, ended | (chosen == EOS_ID), cache

    cache = init_cache(model, encoded, max_len, code_mask=code_mask, code_rows=rows)
    ids = jnp.full((num, max_len), PAD_ID, jnp.int32)
    start = (jnp.int32(0), ids, jnp.full((num,), BOS_ID, jnp.int32), jnp.zeros((num,), bool), cache)
    return lax.while_loop(unfinished, extend, start)[1]
