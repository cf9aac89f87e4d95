"""Scores of a whole closed set of answers: one encoder pass, one decoder pass over the set's trie.

The official evaluation decodes every answer by itself, 20 at a time, the question again before each of them (OFA-Sys/OFA,
utils/eval_utils.py and tasks/mm_tasks/vqa_gen.py: 157 passes for VQA's 3,129 answers). Here a prefix that answers share is one token of
a tree, the question stands before the tree once, and every token sees its own ancestors only. The scores are the same:
log-probabilities among the children of each prefix (the trie's mask before the softmax), summed over the answer's tokens and EOS,
without normalisation of length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID
from ofa_jax.models.encoder import Encoded
from ofa_jax.models.ofa import OFA
from ofa_jax.vocab.trie import ROOT, Trie, build_trie

MAX_NODES = 1_024  # of one pass: attention among them is as large as their number squared
GATHERED = 1 << 26  # numbers (256 MB in float32) that scores of edges are formed of at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """A closed set of token sequences, cut into passes of one static shape. Build it with `candidates`.

    A node is a prefix that is fed to the decoder (node 0 of every pass: the empty one), an edge a token that may follow it.
    """

    tokens: jax.Array  # int32 [passes, nodes]; node 0's is not read: it is BOS or the end of the prompt
    depths: jax.Array  # int32 [passes, nodes], number of tokens of the prefix
    ancestors: jax.Array  # bool [passes, nodes, nodes]: True where j is a prefix of i, itself included
    edge_nodes: jax.Array  # int32 [passes, edges], ascending; `nodes` where there is none
    edge_tokens: jax.Array  # int32 [passes, edges]
    paths: jax.Array  # int32 [passes, members, max_len + 1]: edges from node 0 to the member's EOS; `edges` behind them
    places: jax.Array  # int32 [num]: where in [passes * members] each sequence is that the set was built of
    max_depth: int = dataclasses.field(metadata={"static": True})

    @property
    def num(self) -> int:
        """Number of sequences the set was built of."""
        return self.places.shape[0]


def candidates(members: Sequence[Sequence[int]], *, max_nodes: int = MAX_NODES) -> Candidates:
    """Returns the compiled set of `members`, token sequences without BOS and EOS; equal ones get equal scores.

    max_nodes: prefixes of one pass. Passes are filled with neighbours, so that few prefixes are in more than one.

    Raises:
      ValueError: no members, one that holds BOS, PAD or EOS (see `build_trie`), or one with more prefixes than `max_nodes`.
    """
    trie = build_trie(members)
    sequences = [tuple(map(int, ids)) for ids in members]
    longest = max(map(len, sequences))
    if longest + 1 > max_nodes:
        raise ValueError(f"members: found one of {longest} tokens, expected fewer than max_nodes = {max_nodes}")
    passes = [_Pass(trie)]
    where: dict[tuple[int, ...], tuple[int, int]] = {}
    for ids in sorted(set(sequences)):
        if not passes[-1].has_room(ids, max_nodes):
            passes.append(_Pass(trie))
        where[ids] = len(passes) - 1, passes[-1].add(ids)
    nodes, edges, rows = (max(len(getattr(one, name)) for one in passes) for name in ("depths", "edge_nodes", "paths"))
    arrays = [one.arrays(nodes, edges, rows, longest + 1) for one in passes]
    places = [where[ids][0] * rows + where[ids][1] for ids in sequences]
    stacked = {name: jnp.asarray(np.stack([one[name] for one in arrays])) for name in arrays[0]}
    return Candidates(**stacked, places=jnp.asarray(places, jnp.int32), max_depth=longest)


class _Pass:
    """The part of the set that one decoder pass scores; it grows member by member, in sorted order."""

    def __init__(self, trie: Trie):
        self._trie = trie
        self._nodes: dict[tuple[int, ...], int] = {}
        self._edges: dict[tuple[int, int], int] = {}  # (node, token) -> edge
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.parents: list[int] = []
        self.edge_nodes: list[int] = []
        self.edge_tokens: list[int] = []
        self.paths: list[list[int]] = []
        self._add_node((), parent=0, trie_node=ROOT)

    def has_room(self, ids: tuple[int, ...], max_nodes: int) -> bool:
        """Whether the prefixes of `ids` that are not here yet fit."""
        return len(self.depths) + sum(ids[:k] not in self._nodes for k in range(1, len(ids) + 1)) <= max_nodes

    def add(self, ids: tuple[int, ...]) -> int:
        """Adds a member and returns its row in `paths`."""
        node, trie_node, path = 0, ROOT, []
        for k, token in enumerate(ids, start=1):
            path.append(self._edges[node, token])
            trie_node = self._child(trie_node, token)
            if ids[:k] not in self._nodes:
                self._add_node(ids[:k], parent=node, trie_node=trie_node)
            node = self._nodes[ids[:k]]
        self.paths.append([*path, self._edges[node, EOS_ID]])
        return len(self.paths) - 1

    def _children(self, trie_node: int) -> range:
        return range(*self._trie.first_child[trie_node : trie_node + 2])

    def _child(self, trie_node: int, token: int) -> int:
        children = self._children(trie_node)
        return children.start + int(np.searchsorted(self._trie.tokens[children.start : children.stop], token))

    def _add_node(self, ids: tuple[int, ...], *, parent: int, trie_node: int) -> None:
        node = self._nodes[ids] = len(self.depths)
        self.tokens.append(ids[-1] if ids else BOS_ID)
        self.depths.append(len(ids))
        self.parents.append(parent)
        for child in self._children(trie_node):
            token = int(self._trie.tokens[child])
            self._edges[node, token] = len(self.edge_nodes)
            self.edge_nodes.append(node)
            self.edge_tokens.append(token)

    def arrays(self, nodes: int, edges: int, rows: int, steps: int) -> dict[str, np.ndarray]:
        """Returns the arrays of `Candidates`, padded to these sizes. A node that only pads sees node 0 and itself."""
        ancestors = np.eye(nodes, dtype=bool)
        ancestors[:, 0] = True
        for node, parent in enumerate(self.parents):  # parents come before their children
            ancestors[node] |= ancestors[parent]

        def filled(shape: tuple[int, ...], value: int, rows_of: Sequence) -> np.ndarray:
            array = np.full(shape, value, np.int32)
            for index, row in enumerate(rows_of):
                array[index, ...] = row
            return array

        paths = [path + [edges] * (steps - len(path)) for path in self.paths]
        return {
            "tokens": filled((nodes,), PAD_ID, self.tokens),
            "depths": filled((nodes,), 0, self.depths),
            "ancestors": ancestors,
            "edge_nodes": filled((edges,), nodes, self.edge_nodes),
            "edge_tokens": filled((edges,), PAD_ID, self.edge_tokens),
            "paths": filled((rows, steps), edges, paths),
        }


def score_candidates(model: OFA, encoded: Encoded, answers: Candidates, *, prompt_ids: jax.Array | None = None) -> jax.Array:
    """Returns the log-probability of every answer after every encoded sequence, [Q, answers.num] in `policy.accum`.

    Args:
      prompt_ids: int32 [Q, W] right-padded with PAD: what the decoder reads before the answer, BOS left out (OFA's `prompt_type`
        prev_output: the source without its BOS and EOS). None: the answer follows BOS.

    Raises:
      ValueError: prompts of another shape, or a prompt and an answer that are together longer than the position table.
    """
    num = encoded.states.shape[0]
    prompt_ids = jnp.zeros((num, 0), jnp.int32) if prompt_ids is None else jnp.asarray(prompt_ids, jnp.int32)
    if prompt_ids.ndim != 2 or prompt_ids.shape[0] != num:
        raise ValueError(f"prompt_ids: found shape {prompt_ids.shape}, expected [{num}, tokens]")
    # The prompt is BOS and its tokens; node 0 of the tree is its last token, wherever that is in each sequence.
    prompt = jnp.pad(prompt_ids, ((0, 0), (1, 0)), constant_values=BOS_ID)
    width = prompt.shape[1]
    lens = jnp.sum(prompt_ids != PAD_ID, 1, dtype=jnp.int32)  # the place of the last prompt token; all 0 without a prompt
    shared = width == 1
    last = jnp.take_along_axis(prompt, lens[:, None], 1)

    def one_pass(part: Candidates) -> jax.Array:
        tokens = jnp.broadcast_to(part.tokens, (num, part.tokens.size)).at[:, 0].set(last[:, 0])
        places = (lens[:1] if shared else lens)[:, None] + part.depths
        sees = jnp.broadcast_to(part.ancestors, (places.shape[0], *part.ancestors.shape))
        if not shared:
            # Before the tree: the prompt without its last token, which is node 0.
            ahead = jnp.arange(width)
            tokens = jnp.concatenate([prompt, tokens], 1)
            places = jnp.concatenate([jnp.broadcast_to(ahead, (num, width)), places], 1)
            before = ahead < lens[:, None]
            among = jnp.tri(width, dtype=bool) | jnp.eye(width, dtype=bool)
            top = jnp.concatenate([jnp.broadcast_to(among, (num, width, width)), jnp.zeros((num, width, part.depths.size), bool)], 2)
            below = jnp.concatenate([jnp.broadcast_to(before[:, None], (num, part.depths.size, width)), sees], 2)
            sees = jnp.concatenate([top, below], 1)
        hidden = model.decode_tree(encoded, tokens, places=places, sees=sees, length=width + answers.max_depth)
        hidden = hidden[:, -part.tokens.size :]
        scores = _edge_scores(hidden, model.embedding.table[...], part, dtype=model.policy.accum)
        log_probs = jax.vmap(lambda one: _normalised(one, part.edge_nodes, part.tokens.size))(scores)
        return jnp.sum(jnp.pad(log_probs, ((0, 0), (0, 1)))[:, part.paths], -1)  # [Q, members]

    def scan(_: None, arrays: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
        names = ("tokens", "depths", "ancestors", "edge_nodes", "edge_tokens", "paths")
        return None, one_pass(dataclasses.replace(answers, **dict(zip(names, arrays, strict=True))))

    arrays = (answers.tokens, answers.depths, answers.ancestors, answers.edge_nodes, answers.edge_tokens, answers.paths)
    found = lax.scan(scan, None, arrays)[1]  # [passes, Q, members]
    return jnp.moveaxis(found, 1, 0).reshape(num, -1)[:, answers.places]


def _edge_scores(hidden: jax.Array, table: jax.Array, part: Candidates, *, dtype: Any) -> jax.Array:
    """Returns the logit of every edge of a pass, [Q, edges], from hidden [Q, nodes, D] and the table of tokens [V, D].

    A root of 21,000 classes has thousands of edges, of which each would hold a copy of its node's vector: so many are formed at once as
    fit in `GATHERED` numbers.
    """
    num, edges = hidden.shape[0], part.edge_nodes.size
    size = max(1, min(edges, GATHERED // (num * hidden.shape[-1])))
    padding = -edges % size

    def one_part(edge: tuple[jax.Array, jax.Array]) -> jax.Array:
        nodes, tokens = edge
        return jnp.einsum("qed,ed->qe", hidden[:, nodes], table[tokens].astype(hidden.dtype), preferred_element_type=dtype)

    parts = tuple(jnp.pad(x, (0, padding)).reshape(-1, size) for x in (part.edge_nodes, part.edge_tokens))
    scores = one_part((parts[0][0], parts[1][0]))[None] if size == edges else lax.map(one_part, parts)
    return jnp.moveaxis(scores, 0, 1).reshape(num, -1)[:, :edges]


def _normalised(scores: jax.Array, groups: jax.Array, num_groups: int) -> jax.Array:
    """Returns log-softmax of scores [E] within each group; an entry of group `num_groups` belongs to none and gets 0."""
    top = jax.ops.segment_max(scores, groups, num_groups, indices_are_sorted=True)
    inside = groups < num_groups
    group = jnp.minimum(groups, num_groups - 1)
    shifted = jnp.where(inside, scores - lax.stop_gradient(top[group]), 0.0)
    total = jax.ops.segment_sum(jnp.where(inside, jnp.exp(shifted), 0.0), groups, num_groups, indices_are_sorted=True)
    return jnp.where(inside, shifted - jnp.log(total[group]), 0.0)
