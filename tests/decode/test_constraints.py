"""Constraints on the device against the sets they stand for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.config.schema import EOS_ID
from ofa_jax.decode.constraints import Constraint, IdRange, Members
from ofa_jax.vocab.trie import build_trie

SIZE = 12
TOKENS = st.lists(st.integers(3, SIZE - 1), max_size=4)


def ids(mask):
    return np.flatnonzero(np.asarray(mask)).tolist()


def test_free_and_range():
    state = Constraint().start(jnp.array([0, 2]))
    assert state.tolist() == [0, 0]
    assert ids(Constraint().allowed(state[0], SIZE)) == list(range(SIZE))
    assert ids(IdRange(6, 9).allowed(state[0], SIZE)) == [0, 1, 2, 3, 6, 7, 8]
    assert IdRange(6, 9).advance(state[0], jnp.int32(7)) == 0


@settings(max_examples=15)
@given(members=st.lists(TOKENS, min_size=1, max_size=8), walk=TOKENS, prefix_len=st.integers(0, 3))
def test_members_follow_the_trie_behind_the_prefix(members, walk, prefix_len):
    trie = build_trie(members)
    with jax.disable_jit():
        constraint = Members.of(trie)
        [state] = constraint.start(jnp.array([prefix_len]))
        for _ in range(prefix_len):
            assert ids(constraint.allowed(state, SIZE)) == list(range(SIZE))
            state = constraint.advance(state, jnp.int32(11))
        for place, token in enumerate([*walk, EOS_ID]):
            assert ids(constraint.allowed(state, SIZE)) == trie.allowed(walk[:place])
            state = constraint.advance(state, jnp.int32(token))


@pytest.mark.parametrize("constraint", [Constraint(), IdRange(6, 9), Members.of(build_trie([[4], [5]]))])
def test_constraints_are_arguments_of_jit(constraint):
    calls = []

    @jax.jit
    def allowed(constraint):
        calls.append(1)
        return constraint.allowed(jnp.int32(0), SIZE)

    first = allowed(constraint)
    np.testing.assert_array_equal(first, allowed(constraint))
    assert len(calls) == 1


def test_another_set_of_the_same_sizes_compiles_nothing():
    calls = []

    @jax.jit
    def allowed(constraint):
        calls.append(1)
        return constraint.allowed(jnp.int32(0), SIZE)

    assert ids(allowed(Members.of(build_trie([[4], [5]])))) == [4, 5]
    assert ids(allowed(Members.of(build_trie([[7], [9]])))) == [7, 9]
    assert len(calls) == 1
