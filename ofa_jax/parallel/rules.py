"""The one table from logical axis names to mesh axes.

Parameters carry logical names where they are created (`nnx.Param(value, axes=("vocab", "width"))`); this table alone decides what
is split over which mesh axis. A mesh axis splits at most one dimension of an array: the first dimension that asks for it gets it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ofa_jax.config.errors import UserError


class Rule(NamedTuple):
    """Where a logical axis goes. `uneven` says what happens to a dimension that the mesh axis does not divide."""

    mesh_axes: tuple[str, ...]
    uneven: str = "error"  # or "replicate", only for small arrays


WHOLE = Rule(())

RULES: dict[str, Rule] = {
    "batch": Rule(("data", "fsdp")),
    "sequence": WHOLE,
    "layers": WHOLE,  # stacked layers stay together: each step of the stack needs one of them
    "vocab": Rule(("fsdp", "tensor")),  # and never gathered (`parallel/layout`)
    "words": Rule(("tensor",), uneven="replicate"),
    "width": Rule(("fsdp",)),
    "ffn": Rule(("tensor",)),
    "heads": Rule(("tensor",)),
    "head_width": WHOLE,
    "positions": WHOLE,
    "buckets": WHOLE,
    "channels_in": WHOLE,
    "channels_out": Rule(("fsdp",), uneven="replicate"),  # the first stages are narrower than a big pod's fsdp axis
    "norm": WHOLE,
}


def partition_spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, *, name: str) -> PartitionSpec:
    """Returns the partition of one array with logical `axes` (None: whole) and `shape`.

    Raises `UserError` when a dimension cannot be split evenly and its rule does not allow replication, and `ValueError` when the
    names do not fit the shape or the table (a mistake in the model's code).
    """
    if len(axes) != len(shape):
        raise ValueError(f"parameter {name}: {len(axes)} axis names {axes} for shape {shape}")
    taken: set[str] = set()
    parts: list[tuple[str, ...] | str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in RULES:
            raise ValueError(f"parameter {name}: logical axis {axis!r} is not in the table ({', '.join(RULES)})")
        rule = WHOLE if axis is None else RULES[axis]
        wanted = tuple(a for a in rule.mesh_axes if mesh.shape[a] > 1 and a not in taken)
        pieces = 1
        for a in wanted:
            pieces *= mesh.shape[a]
        if size % pieces:
            if rule.uneven == "error":
                raise UserError(
                    f"parameter {name}: dimension {axis} of size {size} cannot be split over mesh.{'*'.join(wanted)} = {pieces}; "
                    f"expected a mesh size that divides {size}"
                )
            wanted = ()
        taken.update(wanted)
        parts.append(wanted[0] if len(wanted) == 1 else (wanted or None))
    return PartitionSpec(*parts)


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """Returns a tree of `NamedSharding` with the structure of `params`.

    `params` is the state of a model: a tree whose variables hold arrays (or shapes) and the metadata `axes`. A variable without
    `axes` is an error: every parameter says what its dimensions are.
    """

    def is_variable(node: Any) -> bool:
        return hasattr(node, "get_metadata")

    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_variable)
    shardings = []
    for path, variable in flat:
        name = key_path_name(path)
        axes = variable.get_metadata().get("axes") if is_variable(variable) else None
        if axes is None:
            raise ValueError(f"parameter {name}: no logical axis names; create it as nnx.Param(value, axes=(...))")
        spec = partition_spec(tuple(axes), tuple(variable.get_value().shape), mesh, name=name)
        shardings.append(variable.replace(NamedSharding(mesh, spec)))
    return jax.tree_util.tree_unflatten(treedef, shardings)


def key_path_name(path: tuple[Any, ...]) -> str:
    """Returns a readable name of a key path, as `encoder/layers/attention/query`, without the trailing `value` of a variable."""
    return "/".join(key_path_parts(path))


def key_path_parts(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns the keys of a path as strings; a variable's own `value` attribute is left out."""
    parts = []
    for entry in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                parts.append(str(getattr(entry, attribute)))
                break
    if len(parts) > 1 and parts[-1] == "value":
        parts.pop()
    return tuple(parts)
