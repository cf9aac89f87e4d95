"""Settings of a search and the rules by which it reads the model's logits, shared by beam search and sampling.

The rules are those of OFA's `SequenceGenerator`, which is fairseq's with BOS as the first token and with constraints. They are
written for one hypothesis and mapped over sequences and beams.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from ofa_jax.decode.constraints import Constraint


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How to decode; the defaults are the official generator's. Static under jit. Raises ValueError for what cannot be run."""

    beam: int = 5  # hypotheses a sequence
    max_len: int = 200  # tokens before EOS, forced prefix included: int(max_len_a * source length + max_len_b) of the official settings
    min_len: int = 1  # EOS cannot come before this many tokens
    lenpen: float = 1.0  # a normalised score is the total over length ** lenpen; the length counts EOS and the prefix
    unk_penalty: float = 0.0
    temperature: float = 1.0  # divides the logits
    no_repeat_ngram: int = 0  # no n-gram of BOS + prefix + hypothesis comes twice; 0 is off
    normalise: bool = True
    fixed_length: bool = False  # exactly max_len tokens, no id below 4 among them: OFA's generation of codes and boxes
    zero_shot: bool = False  # the constraint is applied behind the softmax: what it forbids keeps its share of the probability
    ignore_eos: bool = False  # the forced EOS at max_len has log-probability 1 instead of its own (so in the official code)

    def __post_init__(self):
        if self.beam < 1:
            raise ValueError(f"beam: found {self.beam}, expected at least 1")
        if not 0 <= self.min_len <= self.max_len:
            raise ValueError(f"min_len: found {self.min_len}, expected 0 to max_len = {self.max_len}")
        if not self.temperature > 0:
            raise ValueError(f"temperature: found {self.temperature}, expected more than 0")
        if self.no_repeat_ngram < 0:
            raise ValueError(f"no_repeat_ngram: found {self.no_repeat_ngram}, expected 0 (off) or more")

    def final_score(self, total: jax.Array, length: jax.Array) -> jax.Array:
        """Returns the score of an ended hypothesis from the sum of its log-probabilities; `length` counts EOS and the prefix."""
        return total / length.astype(total.dtype) ** self.lenpen if self.normalise else total


class Rules:
    """The rules of one search over Q sequences.

    Args:
      prefix_ids: int32 [Q, W] right-padded with PAD, tokens that every hypothesis of a sequence begins with (no BOS); None: nothing.
      constraint: what may be written; None: everything.

    Raises:
      ValueError: prefixes of another shape, or longer than `max_len`.
      TypeError: a constraint that is none.
    """

    def __init__(self, config: DecodeConfig, constraint: Constraint | None, prefix_ids: jax.Array | None, *, num: int):
        constraint = Constraint() if constraint is None else constraint
        if not isinstance(constraint, Constraint):
            raise TypeError(f"constraint: found {type(constraint).__name__}, expected one IdRange or Members; they exclude each other")
        prefix_ids = jnp.zeros((num, 0), jnp.int32) if prefix_ids is None else jnp.asarray(prefix_ids, jnp.int32)
        if prefix_ids.ndim != 2 or prefix_ids.shape[0] != num or prefix_ids.shape[1] > config.max_len:
            raise ValueError(f"prefix_ids: found shape {prefix_ids.shape}, expected [{num}, at most max_len = {config.max_len}]")
        self.config, self.constraint, self.prefix_width = config, constraint, prefix_ids.shape[1]
        padding = (0, 0), (0, config.max_len + 1 - self.prefix_width)
        self.forced_ids = jnp.pad(prefix_ids, padding, constant_values=PAD_ID)

    def first_states(self) -> jax.Array:
        """Returns the constraint's states int32 [Q, beam] before the first token."""
        prefix_lens = jnp.sum(self.forced_ids != PAD_ID, 1, dtype=jnp.int32)
        return jnp.repeat(self.constraint.start(prefix_lens)[:, None], self.config.beam, 1)

    def log_probs(self, logits: jax.Array, ids: jax.Array, states: jax.Array, place: jax.Array) -> jax.Array:
        """Returns the log-probability of every next token, -inf where a rule forbids it, as [Q, beam, V].

        Args:
          logits: [Q, beam, V] of the token at `place` (int scalar, 0 is the first after BOS).
          ids: int32 [Q, beam, max_len + 1], the tokens before `place`, without BOS.
          states: the constraint's states int32 [Q, beam].
        """
        of_beams = jax.vmap(self._log_probs, in_axes=(0, 0, 0, None, None))
        return jax.vmap(of_beams, in_axes=(0, 0, 0, 0, None))(logits, ids, states, self.forced_ids[:, place], place)

    def _log_probs(self, logits: jax.Array, ids: jax.Array, state: jax.Array, forced: jax.Array, place: jax.Array) -> jax.Array:
        config, token = self.config, jnp.arange(logits.shape[-1])
        allowed, at_end = self.constraint.allowed(state, token.size), place >= config.max_len
        logits = logits / config.temperature
        scores = jax.nn.log_softmax(logits if config.zero_shot else jnp.where(allowed, logits, -jnp.inf))
        # As in the official code, no minimal length holds before the longest prefix of the batch has ended, also for shorter ones.
        too_early = (place >= self.prefix_width) & (place < config.min_len)
        banned = ~allowed | (token == PAD_ID) | jnp.isnan(scores)
        banned |= (forced != PAD_ID) & (token != forced)
        banned |= jnp.where(token == EOS_ID, too_early, at_end)
        if config.fixed_length:
            banned |= (token <= UNK_ID) & ~at_end
        scores = jnp.where(banned, -jnp.inf, jnp.where(token == UNK_ID, scores - config.unk_penalty, scores))
        if config.ignore_eos:
            scores = jnp.where((token == EOS_ID) & at_end, 1.0, scores)
        if 0 < config.no_repeat_ngram <= config.max_len:
            scores = scores.at[_repeating(ids, place, config.no_repeat_ngram)].set(-jnp.inf)
        return scores


def _repeating(ids: jax.Array, place: jax.Array, n: int) -> jax.Array:
    """Returns the tokens that would end an n-gram which is already in BOS + ids[:place], and PAD, never allowed, in free places."""
    row = jnp.pad(ids, (1, 0), constant_values=BOS_ID)
    num = row.size - n + 1
    begun = lax.dynamic_slice(row, (place + 2 - n,), (n - 1,))  # the last n - 1 tokens; before there are so many, none repeats
    same = jnp.arange(num) + n - 1 <= place
    for k in range(n - 1):
        same &= row[k : k + num] == begun[k]
    return jnp.where(same, row[n - 1 :], PAD_ID)
