"""The compiled trie against the set it was made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.config.schema import EOS_ID
from ofa_jax.vocab.trie import LOST, ROOT, build_trie

TOKENS = st.lists(st.integers(3, 9), max_size=5)


@given(members=st.lists(TOKENS, min_size=1, max_size=12), probe=TOKENS)
def test_what_may_follow_is_what_follows_in_the_set(members, probe):
    trie, whole = build_trie(members), [[*ids, EOS_ID] for ids in members]
    for prefix in [probe, *members, *whole]:
        begun = [ids for ids in whole if ids[: len(prefix)] == list(prefix)]
        expected = sorted({ids[len(prefix)] for ids in begun if len(ids) > len(prefix)}) if begun else [EOS_ID]
        assert trie.allowed(prefix) == expected


def test_the_arrays():
    trie = build_trie([[5, 6], [5], [7], [5, 6]])
    # Breadth first: BOS, the lost node, then 5 and 7, the lost node's EOS, the two ways on from 5, the EOS of 7, the EOS of 5 6.
    assert trie.tokens.tolist() == [0, 1, 5, 7, EOS_ID, EOS_ID, 6, EOS_ID, EOS_ID]
    assert trie.first_child.tolist() == [2, 4, 5, 7, 8, 8, 8, 9, 9, 9]
    assert (trie.tokens.dtype, trie.first_child.dtype) == (np.int32, np.int32)
    assert trie.max_children == 2 and (ROOT, LOST) == (0, 1)


def test_21000_labels_stay_small():
    draw = np.random.default_rng(0)
    members = {tuple(row[: draw.integers(1, 7)]) for row in draw.integers(4, 50_000, (21_000, 6)).tolist()}
    trie = build_trie(members)
    assert trie.tokens.nbytes + trie.first_child.nbytes < 2**20
    assert trie.max_children == len({ids[0] for ids in members})
    for ids in list(members)[:50]:
        assert EOS_ID in trie.allowed(ids)


@pytest.mark.parametrize(
    ("members", "words"),
    [([], "members: found none"), ([[4, EOS_ID]], r"members: found \[4, 2\]"), ([[5], [-1]], r"members: found \[-1\]"), ([[0, 4]], "BOS")],
)
def test_sets_that_cannot_be_compiled(members, words):
    with pytest.raises(ValueError, match=words):
        build_trie(members)
