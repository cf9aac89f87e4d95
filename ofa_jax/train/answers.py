"""Targets that are answers: their places behind a prompt, the closed set that they are of, and noise in what the decoder reads.

OFA's recipes for closed sets (VQAv2, SNLI-VE, ImageNet, GLUE) mask the logits of every supervised position by the trie of all answers
before the softmax (official `constraint_trie`). Which tokens a position allows follows from its own target tokens before it, so that it is
found on the device, from the trie's arrays. All other ids have probability 0 and no part in the smoothing: the logits are made of the ids
that occur in the set alone (ImageNet's 1,000 names have 2,240), and loss and gradient are those of the masked whole.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.config.rows import ANSWERS
from ofa_jax.config.schema import EOS_ID, PAD_ID, UNK_ID, RunConfig
from ofa_jax.decode.constraints import Members
from ofa_jax.vocab.tokenizer import load_tokenizer
from ofa_jax.vocab.trie import build_trie

TASK_ANSWERS = "task"  # of `loss.answers`: those that the rows' task has


class ClosedSet:
    """The answers that `loss.answers` names, as token sequences and as a trie for the device."""

    def __init__(self, config: RunConfig):
        """Raises ConfigError for a file that is not there, without labels, with an empty one, or with one twice: evaluation could not tell
        two equal answers apart either (`eval.ways.closed_set`)."""
        labels = _labels(config)
        tokenizer = load_tokenizer(config.vocab)
        sequences = [tuple(int(t) for t in ids) for ids in tokenizer.encode_batch([f" {label}" for label in labels])]
        self.where, self._sequences, self._trie = config.loss.answers, frozenset(sequences), build_trie(sequences)
        self.ids = np.array(sorted({EOS_ID}.union(*sequences)), np.int32)  # all that a position can allow: the columns of its logits
        self._columns = np.full(config.vocab.size, -1, np.int32)
        self._columns[self.ids] = np.arange(self.ids.size)

    def columns(self, target_ids: jax.Array) -> jax.Array:
        """Returns the place in `ids` of each of target_ids int32 [...]; -1, the column of none, for one that is not there."""
        return jnp.take(jnp.asarray(self._columns), target_ids, mode="clip")

    def allowed(self, target_ids: jax.Array) -> jax.Array:
        """target_ids int32 [Q, A], answers from their first token on -> bool [Q, A, U]: which of `ids` may stand at each position."""
        members = Members(jnp.asarray(self._columns[self._trie.tokens]), jnp.asarray(self._trie.first_child), self._trie.max_children)

        def advance(states: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jax.vmap(members.advance)(states, tokens), states

        first = members.start(jnp.zeros(target_ids.shape[0], jnp.int32))
        # A token that is no member's leads to no node, like the column of none: children that are absent have another.
        columns = self.columns(target_ids)
        states = lax.scan(advance, first, jnp.where(columns < 0, self.ids.size, columns).T)[1].T
        return jax.vmap(jax.vmap(lambda state: members.allowed(state, self.ids.size)))(states)

    def check(self, target_ids: np.ndarray, *, where: str) -> None:
        """Raises UserError, beginning with `where`, for the first row of int [Q, T] whose target is none of the answers."""
        for number, row in enumerate(target_ids):
            ids = tuple(int(t) for t in row if t not in (PAD_ID, EOS_ID))
            if ids and ids not in self._sequences:
                raise UserError(
                    f"{where}: found the target {list(ids)} in sequence {number}, expected one of the {len(self._sequences):,} answers of "
                    f"loss.answers={self.where}"
                )


def closed_set(config: RunConfig) -> ClosedSet | None:
    """Returns the closed set of a run, None where `loss.answers` names none."""
    return ClosedSet(config) if config.loss.answers else None


def _labels(config: RunConfig) -> list[str]:
    if config.loss.answers == TASK_ANSWERS:
        rows = {source.row for block in config.data.blocks for source in block.sources}
        return list(dict.fromkeys(label for row in sorted(rows) for label in ANSWERS[row]))
    path = Path(config.loss.answers)
    if not path.is_file():
        raise ConfigError(f"loss.answers: found no file {path}, expected one label a line, or {TASK_ANSWERS}")
    labels = path.read_text(encoding="utf-8").splitlines()
    for number, label in enumerate(labels, start=1):
        if not label.strip():
            raise ConfigError(f"loss.answers: {path}: line {number}: found an empty label, expected text")
    if not labels:
        raise ConfigError(f"loss.answers: {path}: found no label, expected at least one")
    if len(set(labels)) < len(labels):
        twice = next(label for label, count in Counter(labels).items() if count > 1)
        raise ConfigError(f"loss.answers: {path}: found {twice!r} more than once, expected labels that differ")
    return labels


def take_answers(hidden: jax.Array, target_ids: jax.Array, *, length: int) -> tuple[jax.Array, jax.Array]:
    """Returns (hidden [Q, length, D], target_ids [Q, length]) from the first target of each sequence on; hidden [Q, T, D].

    Only these positions get logits: under a prompt of a hundred tokens an answer of five would else pay for all.
    """
    first = jnp.argmax(target_ids != PAD_ID, axis=1)
    places = first[:, None] + jnp.arange(length)
    inside = places < target_ids.shape[1]
    places = jnp.where(inside, places, 0)
    taken = jnp.take_along_axis(target_ids, places, axis=1)
    return jnp.take_along_axis(hidden, places[..., None], axis=1), jnp.where(inside, taken, PAD_ID)


def noisy(decoder_ids: jax.Array, keys: jax.Array, *, share: float, num_text: int) -> jax.Array:
    """Returns decoder_ids int32 [Q, T] with about `share` of the tokens behind BOS replaced by uniform text ids from 4 on (the noise of the
    official Gigaword code, `add_noise_to_tgt`); keys [Q]. BOS and PAD stay."""

    def one(key: jax.Array, ids: jax.Array) -> jax.Array:
        chosen, drawn = jax.random.split(key)
        noise = jax.random.randint(drawn, ids.shape, UNK_ID + 1, num_text, jnp.int32)
        replaced = (jax.random.uniform(chosen, ids.shape) < share) & (ids != PAD_ID) & (jnp.arange(ids.size) > 0)
        return jnp.where(replaced, noise, ids)

    return jax.vmap(one)(keys, decoder_ids)
