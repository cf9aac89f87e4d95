"""A state as nested dicts by part, the form in which it lies on disk: names of the keys of the state, no layout, no types of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from ofa_jax.parallel.rules import key_path_parts

COUNTERS = ("step", "data_step")  # two scalars of the state that form one part, `counters`


def named_leaves(state: Any) -> list[tuple[str, tuple[str, ...], Any]]:
    """Returns (part, names below it, leaf) of every leaf in the order of the tree; step and data_step form the part `counters`."""
    out = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        names = key_path_parts(path)
        out.append(("counters", names, leaf) if names[0] in COUNTERS else (names[0], names[1:], leaf))
    return out


def parts_of(state: Any) -> dict[str, Any]:
    """Returns the state as nested dicts by part; parts without arrays are left out, and a part that is one array is named `value`."""
    parts: dict[str, Any] = {}
    for part, names, leaf in named_leaves(state):
        _put(parts.setdefault(part, {}), names or ("value",), leaf)
    return parts


def from_parts(abstract_state: Any, parts: dict[str, Any]) -> Any:
    """Returns the tree of the structure of `abstract_state` whose leaves lie in `parts`, the inverse of `parts_of`."""
    leaves = []
    for part, names, _ in named_leaves(abstract_state):
        node = parts[part]
        for name in names or ("value",):
            node = node[name]
        leaves.append(node)
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(abstract_state), leaves)


def nested(tree: Any) -> dict[str, Any]:
    """Returns one part as nested dicts."""
    return from_paths({key_path_parts(path) or ("value",): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]})


def from_paths(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Returns nested dicts with each leaf at its path."""
    out: dict[str, Any] = {}
    for path, leaf in leaves.items():
        _put(out, path, leaf)
    return out


def like(abstract: Any, tree: dict[str, Any]) -> Any:
    """Returns the leaves of the nested dicts `tree` in the structure of `abstract`, the inverse of `nested`."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    leaves = []
    for path, _ in flat:
        node: Any = tree
        for name in key_path_parts(path) or ("value",):
            node = node[name]
        leaves.append(node)
    return jax.tree_util.tree_unflatten(treedef, leaves)


def walk(parts: dict[str, Any]) -> dict[str, Any]:
    """Returns "part/name/name" -> leaf of nested dicts; leaves are whatever is no dict."""
    out: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, child in node.items():
                visit(f"{name}/{key}", child)
        else:
            out[name] = node

    for part, tree in parts.items():
        visit(part, tree)
    return out


def _put(node: dict[str, Any], names: tuple[str, ...], leaf: Any) -> None:
    for name in names[:-1]:
        node = node.setdefault(name, {})
    node[names[-1]] = leaf
