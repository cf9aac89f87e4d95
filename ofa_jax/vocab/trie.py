"""A closed set of token sequences as a trie in two integer arrays, small enough for the device and read there by one gather a step.

Nodes are numbered breadth first, so the children of a node are neighbours: `first_child[n]` to `first_child[n + 1]`, in the order of
their tokens, and no list of edges is needed. 21,000 labels take some hundred kilobytes; a [nodes, vocabulary] matrix would take
gigabytes.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterable, Sequence

import numpy as np

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID

ROOT, LOST = 0, 1  # the node of BOS, and the node of every prefix that begins no member; after LOST only EOS may come, as in OFA


@dataclasses.dataclass(frozen=True, eq=False)
class Trie:
    """The compiled set. Every member ends in EOS; BOS is the root."""

    tokens: np.ndarray  # int32 [nodes], the token that leads to a node
    first_child: np.ndarray  # int32 [nodes + 1]

    @property
    def max_children(self) -> int:
        """The largest number of tokens that may follow one prefix."""
        return int(np.diff(self.first_child).max())

    def allowed(self, prefix: Iterable[int]) -> list[int]:
        """Returns the tokens that may follow BOS + `prefix`, ascending: {EOS} if no member begins so, none behind a member's EOS."""
        node = ROOT
        for token in prefix:
            start, stop = self.first_child[node : node + 2]
            place = start + np.searchsorted(self.tokens[start:stop], token)
            node = int(place) if place < stop and self.tokens[place] == token else LOST
        return self.tokens[slice(*self.first_child[node : node + 2])].tolist()


def build_trie(members: Iterable[Sequence[int]]) -> Trie:
    """Returns the trie of `members`, token sequences without BOS and EOS; members given twice count once.

    Raises:
      ValueError: no members, or one that holds a negative id, BOS, PAD or EOS.
    """
    tails = sorted({(*map(int, ids), EOS_ID) for ids in members})
    if not tails:
        raise ValueError("members: found none, expected at least one token sequence")
    for ids in tails:
        if min(ids) < 0 or {BOS_ID, PAD_ID, EOS_ID}.intersection(ids[:-1]):
            raise ValueError(f"members: found {list(ids[:-1])}, expected ids of tokens without BOS, PAD and EOS")
    tokens, first_child = [BOS_ID, PAD_ID], list[int]()
    queue: list[list[tuple[int, ...]]] = [
        [*tails],
        [(EOS_ID,)],
    ]  # of ROOT and LOST: the ways on from each node, sorted; it grows while it is read
    for ways in queue:
        first_child.append(len(tokens))
        for token, group in itertools.groupby((way for way in ways if way), key=operator.itemgetter(0)):
            tokens.append(token)
            queue.append([way[1:] for way in group])
    return Trie(np.array(tokens, np.int32), np.array([*first_child, len(tokens)], np.int32))
