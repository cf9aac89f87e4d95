"""Sampling after OFA's image generation: independent draws for every sequence, from the likeliest k tokens or the likeliest mass p."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID
from ofa_jax.decode.beam import Hypotheses
from ofa_jax.decode.cache import decode_step, init_cache
from ofa_jax.decode.constraints import Constraint
from ofa_jax.decode.rules import DecodeConfig, Rules
from ofa_jax.models.decoder import Cache, CodeRows
from ofa_jax.models.encoder import Encoded
from ofa_jax.models.ofa import OFA


def sample(
    model: OFA,
    encoded: Encoded,
    code_mask: jax.Array | None,
    key: jax.Array,
    *,
    config: DecodeConfig,
    top_k: int = 0,
    top_p: float = 0.0,
    prefix_ids: jax.Array | None = None,
    constraint: Constraint | None = None,
    code_rows: CodeRows | None = None,
) -> Hypotheses:
    """Returns `config.beam` sampled hypotheses of every encoded sequence, the likeliest first.

    Rules, arguments and the score are those of `beam_search`; draws never mix. The score adds the log-probabilities before the cut to
    `top_k` or `top_p`, as the official code does. The draws of sequence q depend on `key` and q alone, or on its own key.

    Args:
      key: a key of `jax.random`, or [Q], one a sequence: then a sequence's draws are the same in any batch.
      top_k: draws from so many likeliest tokens; 0: from all.
      top_p: draws from the fewest likeliest tokens whose mass reaches this; wins over `top_k`; 0: off.

    Raises:
      ValueError: a negative `top_k`, a `top_p` outside 0 to 1, or see `Rules`.
    """
    if top_k < 0:
        raise ValueError(f"top_k: found {top_k}, expected 0 (off) or more")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p: found {top_p}, expected 0 (off) to 1")
    rows = code_rows or ("none" if code_mask is None else "mixed")
    num, dtype, length = encoded.states.shape[0], model.policy.accum, config.max_len + 1
    rules = Rules(config, constraint, prefix_ids, num=num)
    own = key if key.ndim else jax.vmap(lambda q: jax.random.fold_in(key, q))(jnp.arange(num))
    keys = jax.vmap(lambda one: jax.random.split(one, config.beam))(own)
    draw = jax.vmap(jax.vmap(lambda key, log_probs: draw_token(key, log_probs, top_k=top_k, top_p=top_p)))

    def unfinished(carry: _Draws) -> jax.Array:
        return (carry.place < length) & jnp.any((carry.lengths == 0) & (carry.totals > -jnp.inf))

    def step(carry: _Draws) -> _Draws:
        place, ids, totals, states, last, lengths, cache = carry
        logits, cache = decode_step(model, cache, last.reshape(-1), place, code_mask=code_mask, code_rows=rows)
        logits = logits[:, : model.vocab.size].reshape(*last.shape, -1)
        log_probs = rules.log_probs(logits, ids, states, place)
        tokens = draw(jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, place)))(keys), log_probs)
        live = lengths == 0
        tokens = jnp.where(live, tokens, PAD_ID)
        totals += jnp.where(live, jnp.take_along_axis(log_probs, tokens[..., None], -1)[..., 0], 0.0)
        states = jax.vmap(jax.vmap(rules.constraint.advance))(states, tokens)
        lengths = jnp.where(tokens == EOS_ID, place + 1, lengths)
        return _Draws(place + 1, ids.at[..., place].set(tokens), totals, states, tokens, lengths, cache)

    shape = (num, config.beam)
    cache = init_cache(model, encoded, length, code_mask=code_mask, code_rows=rows, beams=config.beam)
    ids, none = jnp.full((*shape, length), PAD_ID, jnp.int32), jnp.zeros(shape, jnp.int32)
    first = _Draws(jnp.int32(0), ids, jnp.zeros(shape, dtype), rules.first_states(), jnp.full_like(none, BOS_ID), none, cache)
    end = lax.while_loop(unfinished, step, first)
    possible = end.totals > -jnp.inf
    lengths = jnp.where(possible, end.lengths, 0)
    scores = jnp.where(possible, config.final_score(end.totals, end.lengths), -jnp.inf)
    return Hypotheses(jnp.where(possible[..., None], end.ids, PAD_ID), scores, lengths).sorted()


class _Draws(NamedTuple):
    """The loop's state; arrays are [Q, beams]."""

    place: jax.Array
    ids: jax.Array  # [Q, beams, max_len + 1], without BOS
    totals: jax.Array
    states: jax.Array
    last: jax.Array
    lengths: jax.Array  # 0 until EOS
    cache: Cache


def draw_token(key: jax.Array, log_probs: jax.Array, *, top_k: int, top_p: float) -> jax.Array:
    """Returns one token (int32 scalar) drawn in proportion to exp(log_probs), [V], among the `top_k` likeliest or the mass `top_p`.

    The mass may fall short of 1, where rules took tokens away: as in the official code, `top_p` is compared with what is left.
    """
    if not (top_k or top_p):
        return jax.random.categorical(key, log_probs).astype(jnp.int32)
    best, tokens = lax.top_k(log_probs, log_probs.size if top_p else min(top_k, log_probs.size))
    if top_p:
        probs = jnp.exp(best)
        best = jnp.where(jnp.cumsum(probs) - probs < top_p, best, -jnp.inf)  # up to the token that reaches the mass
    return tokens[jax.random.categorical(key, best)].astype(jnp.int32)
