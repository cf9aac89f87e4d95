"""What a search may write: anything, one range of ids, or the members of a closed set.

A constraint speaks of one hypothesis, with an int32 scalar as its state; searches map it over hypotheses, advance the states by the
chosen tokens and reorder them with the beam. All kinds pass through `jax.jit` as arguments; of a closed set only the sizes are static.
A search has one constraint, so a range and a trie cannot meet (they exclude each other in OFA).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ofa_jax.config.schema import UNK_ID
from ofa_jax.vocab.trie import LOST, ROOT, Trie


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Constraint:
    """No constraint: every id may come. The kinds below narrow it."""

    def start(self, prefix_lens: jax.Array) -> jax.Array:
        """prefix_lens int32 [Q], forced tokens of each sequence -> first states int32 [Q]."""
        return jnp.zeros_like(prefix_lens)

    def allowed(self, state: jax.Array, size: int) -> jax.Array:
        """Returns bool [size]: the ids that may come next."""
        return jnp.ones(size, bool)

    def advance(self, state: jax.Array, token: jax.Array) -> jax.Array:
        """Returns the state after `token`."""
        return state


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class IdRange(Constraint):
    """Only ids from `start_id` to `stop_id` - 1 and the special ids 0 to 3 may come: OFA's constraint range "a,b".

    Raises ValueError for a range that is empty or begins among the special ids.
    """

    start_id: int
    stop_id: int

    def __post_init__(self):
        if not UNK_ID < self.start_id < self.stop_id:
            raise ValueError(f"constraint range: found {self.start_id} to {self.stop_id}, expected {UNK_ID + 1} <= start < stop")

    def allowed(self, state: jax.Array, size: int) -> jax.Array:
        """Returns bool [size]: the ids that may come next."""
        ids = jnp.arange(size)
        return (ids <= UNK_ID) | ((ids >= self.start_id) & (ids < self.stop_id))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Members(Constraint):
    """Only members of a trie may be written, behind a forced prefix in which everything is allowed.

    The state is a node of the trie; while it is negative, that many forced tokens are still to come.
    """

    tokens: jax.Array  # the trie's arrays
    first_child: jax.Array
    max_children: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, trie: Trie) -> Members:
        """Returns the constraint to the members of `trie`."""
        return cls(jnp.asarray(trie.tokens), jnp.asarray(trie.first_child), trie.max_children)

    def start(self, prefix_lens: jax.Array) -> jax.Array:
        """prefix_lens int32 [Q], forced tokens of each sequence -> first states int32 [Q]."""
        return ROOT - prefix_lens

    def allowed(self, state: jax.Array, size: int) -> jax.Array:
        """Returns bool [size]: the ids that may come next."""
        _, tokens = self._children(state, absent=size)
        return (state < ROOT) | jnp.zeros(size, bool).at[tokens].set(True, mode="drop")

    def advance(self, state: jax.Array, token: jax.Array) -> jax.Array:
        """Returns the state after `token`."""
        nodes, tokens = self._children(state, absent=-1)
        return jnp.where(state < ROOT, state + 1, jnp.max(jnp.where(tokens == token, nodes, LOST)))

    def _children(self, state: jax.Array, *, absent: int) -> tuple[jax.Array, jax.Array]:
        """Returns the children's nodes and tokens as two [max_children]; a node with fewer has the token `absent` at the end."""
        node = jnp.maximum(state, ROOT)
        nodes = self.first_child[node] + jnp.arange(self.max_children, dtype=jnp.int32)
        return nodes, jnp.where(nodes < self.first_child[node + 1], jnp.take(self.tokens, nodes, mode="clip"), absent)
