"""Beam search after OFA's `SequenceGenerator` (fairseq's algorithm; OFA-Sys/OFA, models/sequence_generator.py), inside one jit.

fairseq marks a beam "spent" when too few candidates go on. No such mark is needed: of twice as many candidates as beams at most half,
one a beam, are EOS, so there is always one to go on for every beam. A beam without a possible token has the score -inf and never ends.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID
from ofa_jax.decode.cache import decode_step, init_cache, reorder
from ofa_jax.decode.constraints import Constraint
from ofa_jax.decode.rules import DecodeConfig, Rules
from ofa_jax.models.decoder import CodeRows
from ofa_jax.models.encoder import Encoded
from ofa_jax.models.ofa import OFA

_BLOCK = 64  # elements of a row whose maximum is taken before the largest are looked for


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hypotheses:
    """The ended hypotheses of each sequence, best first. Where too few ended, the rest are PAD with length 0 and score -inf."""

    sequences: jax.Array  # int32 [Q, beams, max_len + 1]: no BOS, the forced prefix and EOS included, PAD behind it
    scores: jax.Array  # [Q, beams]
    lengths: jax.Array  # int32 [Q, beams], EOS included

    def sorted(self) -> Hypotheses:
        """Returns the same hypotheses with descending scores; equal ones keep their order."""
        order = jnp.argsort(-self.scores, axis=1, stable=True)
        return jax.vmap(lambda one, order: jax.tree.map(lambda x: x[order], one))(self, order)


def beam_search(
    model: OFA,
    encoded: Encoded,
    code_mask: jax.Array | None,
    *,
    config: DecodeConfig,
    prefix_ids: jax.Array | None = None,
    constraint: Constraint | None = None,
    code_rows: CodeRows | None = None,
) -> Hypotheses:
    """Returns the `config.beam` best hypotheses of every encoded sequence.

    The loop stops when every sequence has so many ended hypotheses or can get no more, at the latest behind the EOS forced at `max_len`.
    Results do not depend on the other sequences, but for the minimal length beside a longer forced prefix, as in the official code.

    Args:
      code_mask, code_rows: as in `OFA.decode`.
      prefix_ids: int32 [Q, W] right-padded with PAD: tokens every hypothesis of a sequence begins with (no BOS). They count in scores,
        lengths and n-grams.
      constraint: what may be written; None: everything.

    Raises:
      ValueError, TypeError: see `Rules`.
    """
    rows = code_rows or ("none" if code_mask is None else "mixed")
    num = encoded.states.shape[0]
    cache = init_cache(model, encoded, config.max_len + 1, code_mask=code_mask, code_rows=rows, beams=config.beam)

    def next_logits(cache, parents, ids, place):
        logits, cache = decode_step(model, reorder(cache, parents), ids.reshape(-1), place, code_mask=code_mask, code_rows=rows)
        return logits[:, : model.vocab.size].reshape(*ids.shape, -1), cache

    rules = Rules(config, constraint, prefix_ids, num=num)
    return search(next_logits, cache, rules, num=num, dtype=model.policy.accum)


# (state, parents, ids, place) -> logits [Q, beams, V] of the tokens after `ids` [Q, beams], and the new state. Hypothesis k goes on
# from hypothesis parents[q, k] of the step before.
NextLogits = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class _Live(NamedTuple):
    """The hypotheses of one sequence that go on; of all sequences with a leading axis Q."""

    ids: jax.Array  # int32 [beams, max_len + 1], without BOS
    totals: jax.Array  # [beams], sums of log-probabilities
    states: jax.Array  # int32 [beams], of the constraint
    parents: jax.Array  # int32 [beams], the places they had one step before
    last: jax.Array  # int32 [beams], the newest token


def search(next_logits: NextLogits, state: Any, rules: Rules, *, num: int, dtype: np.dtype | type = jnp.float32) -> Hypotheses:
    """Returns the best hypotheses of `num` sequences, whatever model `next_logits` steps. `dtype` is that of its logits."""
    config = rules.config
    shape, length = (num, config.beam), config.max_len + 1
    blank = jnp.full((*shape, length), PAD_ID, jnp.int32)
    # All beams are equal at first. With one of them possible, the first step takes its candidates from that one.
    totals = jnp.full(shape, -jnp.inf, dtype).at[:, 0].set(0.0)
    parents = jnp.broadcast_to(jnp.arange(config.beam, dtype=jnp.int32), shape)
    live = _Live(blank, totals, rules.first_states(), parents, jnp.full(shape, BOS_ID, jnp.int32))
    ended = Hypotheses(blank, jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, jnp.int32))

    def unfinished(carry):
        place, live, ended, _ = carry
        going = jnp.any(ended.lengths == 0, 1) & jnp.any(live.totals > -jnp.inf, 1)
        return (place < length) & jnp.any(going)

    def step(carry):
        place, live, ended, state = carry
        logits, state = next_logits(state, live.parents, live.last, place)
        log_probs = rules.log_probs(logits, live.ids, live.states, place)
        candidates = (live.totals[..., None] + log_probs).reshape(num, -1)
        extend = functools.partial(_extend, place, rules, log_probs.shape[-1])
        live, ended = jax.vmap(extend)(live, ended, *_top_k(candidates, 2 * config.beam))
        return place + 1, live, ended, state

    return lax.while_loop(unfinished, step, (jnp.int32(0), live, ended, state))[2].sorted()


def _extend(
    place: jax.Array, rules: Rules, size: int, live: _Live, ended: Hypotheses, totals: jax.Array, best: jax.Array
) -> tuple[_Live, Hypotheses]:
    """Returns one sequence's hypotheses, going on and ended, after the step at `place`.

    `totals` and `best` are the scores and flat indices (beam * size + token) of the best candidates, twice as many as beams.
    """
    config, beams = rules.config, rules.config.beam
    parents, tokens = best // size, best % size
    ids = live.ids[parents].at[:, place].set(tokens)
    ends = (tokens == EOS_ID) & (totals > -jnp.inf)

    # EOS counts among the first half of the candidates only; once as many as beams have ended, no slot is left.
    slots = jnp.where(ends, jnp.sum(ended.lengths > 0) + jnp.cumsum(ends) - 1, beams)[:beams]
    length = jnp.full(beams, place + 1, jnp.int32)
    new = Hypotheses(ids[:beams], config.final_score(totals[:beams], length), length)
    ended = jax.tree.map(lambda old, new: old.at[slots].set(new, mode="drop"), ended, new)

    on = jnp.argsort(ends, stable=True)[:beams]
    states = jax.vmap(rules.constraint.advance)(live.states[parents[on]], tokens[on])
    return _Live(ids[on], totals[on], states, parents[on], tokens[on]), ended


def _top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns exactly `lax.top_k` of the rows of x (no NaN): the best of the `k` blocks with the largest maxima.

    An element outside them has k better ones, or equal ones of lower index, in as many blocks. Inside a loop XLA's CPU backend sorts whole
    rows: for 5 beams of 59,457 tokens that took most of a small model's step (docs/results/decode.md).
    """
    rows, size = x.shape
    if size <= k * _BLOCK:
        return _largest(x, k)
    blocks = jnp.pad(x, ((0, 0), (0, -size % _BLOCK)), constant_values=-jnp.inf).reshape(rows, -1, _BLOCK)
    chosen = jnp.sort(_largest(jnp.max(blocks, -1), k)[1], -1)  # in order of index, so that of equal elements the first wins
    values, places = _largest(jnp.take_along_axis(blocks, chosen[..., None], 1).reshape(rows, -1), k)
    return values, jnp.take_along_axis(chosen, places // _BLOCK, 1) * _BLOCK + places % _BLOCK


def _largest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns `lax.top_k` of the rows of x by k passes over them. `lax.top_k` itself is a call that XLA does not split by rows on CPUs and
    GPUs: it would gather all rows on every device."""
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)
    left, values, found = jnp.ones(x.shape, bool), [], []
    for _ in range(k):
        values.append(jnp.max(jnp.where(left, x, -jnp.inf), -1))
        found.append(jnp.argmax(left & (x == values[-1][:, None]), -1).astype(jnp.int32))  # of equal ones the first
        left &= places != found[-1][:, None]
    return jnp.stack(values, -1), jnp.stack(found, -1)
