"""What a compiled program sends between devices: every collective with its kind, the mesh axes it goes over, its bytes and its turns.

Bytes are those of the whole array that a collective makes or sums on one device (of an all-gather its result, of a reduce-scatter its
operand, of the others their result), because the time of a ring is that over a link's rate whatever the number of devices (`roofline`).

Where several slices of TPUs run together, XLA's program is that of one slice. It sums in the slice, hands each chip's part to its host,
which exchanges it with the other slices (a `send` that names what the hosts do), and gathers the parts again.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ofa_jax.pods.hlo import Computation, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast", "ragged-all-to-all")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_IOTA = re.compile(r"replica_groups=\[(?P<shape>[\d,]+)\]<=\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?")
_LISTED = re.compile(r"replica_groups=\{(?P<groups>(?:\{[\d,]*\},?)*)\}")
_NAMED = re.compile(r"replica_groups=(?:@?\w+)?mesh\[(?P<axes>[^\]]*)\](?P<ids>,?\s*device_ids=[^{]*)?\s*\{(?P<over>[^}]*)\}")
_EXCHANGED = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_PAIRS = re.compile(r"source_target_pairs=\{(?P<pairs>(?:\{\d+,\d+\},?)*)\}")


SLICES = "slices"  # stands for an axis where hosts of several slices exchange what their chips hand them


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program; `turns` counts what loops repeat."""

    kind: str
    axes: tuple[str, ...]  # of a slice's mesh, in its order; (SLICES,) between slices; () where its groups are not those of axes
    group: int  # devices that take part together
    num_bytes: int  # see the module
    turns: float
    scope: str  # where JAX traced it
    dtype: str

    @property
    def total_bytes(self) -> float:
        return self.num_bytes * self.turns


def mesh_of_slice(mesh: Mapping[str, int], slices: int) -> dict[str, int]:
    """Returns a slice's part of a mesh with the sizes `mesh`: slices are the outer part of its first axis (`parallel.mesh`)."""
    first, *_ = mesh
    return {**mesh, first: mesh[first] // slices}


def collectives(program: Program, mesh: Mapping[str, int], *, slices: int = 1) -> list[Collective]:
    """Returns the collectives of one run of `program` over a mesh with the sizes `mesh`, by axis in the mesh's order, that lies on so many
    slices; axes of what stays in a slice are those of `mesh_of_slice`.

    An asynchronous one is written several times, as one chain, where it begins, goes on and ends; it counts once. Those over one device are
    left out: they send nothing. Raises ValueError for groups that are not understood.
    """
    found: dict[str, Collective] = {}
    inside = mesh_of_slice(mesh, slices)
    callers = _callers(program) if slices > 1 else None
    for computation, one, turns in _deep(program):
        if one.opcode == "send" and (exchanged := _EXCHANGED.search(one.attributes)):
            array, kind = one.arrays[0], exchanged[1].lower().replace("_", "-")
            found[f"{computation.name} {one.name}"] = Collective(kind, (SLICES,), slices, array.num_bytes, turns, one.scope, array.dtype)
            continue
        kind = one.opcode.removesuffix("-start")
        if kind not in KINDS or one.opcode.endswith("-done"):
            continue
        groups = _groups(one, inside)
        if max(map(len, groups)) < 2:
            continue
        chain = _CHAIN.search(one.attributes)
        key = chain[0] if chain else f"{computation.name} {one.name}"
        if key in found and found[key].turns >= turns:
            continue
        dtype, num_bytes = _moved(kind, one, computation, callers)
        found[key] = Collective(kind, _axes(groups, inside), len(groups[0]), num_bytes, turns, one.scope, dtype)
    return list(found.values())


def _deep(program: Program) -> Iterable[tuple[Computation, Instruction, float]]:
    """Yields what is executed, and what stands inside of fusions and asynchronous computations."""
    for computation, one, turns in program.executed():
        yield computation, one, turns
        if one.opcode in ("fusion", "async-start"):
            for called in one.called().values():
                yield from _inside(program, called, turns)


def _inside(program: Program, name: str, turns: float) -> Iterable[tuple[Computation, Instruction, float]]:
    computation = program.computations[name]
    for one in computation.instructions.values():
        yield computation, one, turns
        if one.opcode == "fusion":
            for called in one.called().values():
                yield from _inside(program, called, turns)


_Callers = Mapping[str, tuple[Computation, Instruction]]


def _callers(program: Program) -> _Callers:
    """Returns the fusion that each computation is the inside of, with the computation where it stands."""
    return {
        called: (computation, one)
        for computation in program.computations.values()
        for one in computation.instructions.values()
        if one.opcode == "fusion"
        for called in one.called().values()
    }


def _unpadded(one: Instruction, computation: Computation, callers: _Callers) -> int:
    """Returns the bytes of what is summed without padding: sums over slices are cut in parts for their hosts, for which libtpu looks at an
    array as its tiles (a bitcast), those that a layout only pads included ("ZeroCrop"), and adds tiles until the parts are equal."""
    smallest = sum(array.num_bytes for array in one.arrays)
    while True:
        if one.opcode in ("bitcast", "pad") or (one.opcode == "custom-call" and '"ZeroCrop"' in one.attributes):
            one = computation.instructions[one.operands[0]]
        elif one.opcode == "parameter" and computation.name in callers:
            place, (computation, caller) = int(one.constant), callers[computation.name]
            one = computation.instructions[caller.operands[place]]
        else:
            return smallest
        smallest = min(smallest, sum(array.num_bytes for array in one.arrays))


def _moved(kind: str, one: Instruction, computation: Computation, callers: _Callers | None) -> tuple[str, int]:
    """Returns (dtype, bytes) of a collective, as the module says. callers: of a program of several slices, else None."""
    operands = [array for name in one.operands for array in computation.instructions[name].arrays]
    sent = sum(array.num_bytes for array in operands)
    if callers is not None and kind == "all-reduce":
        return operands[0].dtype, sum(_unpadded(computation.instructions[name], computation, callers) for name in one.operands)
    if kind == "reduce-scatter":
        return operands[0].dtype, sent
    if one.opcode.endswith("-start"):  # its shape holds operands and results
        results = one.arrays[len(operands) :] or one.arrays
        if kind != "all-gather":
            return operands[0].dtype, sent
        return operands[0].dtype, sum(array.num_bytes for array in results[: len(operands)])
    return one.arrays[0].dtype, sum(array.num_bytes for array in one.arrays)


def _groups(one: Instruction, mesh: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Returns the groups of devices, as places in the mesh's flat order."""
    text, count = one.attributes, math.prod(mesh.values())
    if found := _IOTA.search(text):
        return _iota(found["shape"], found["dims"], found["order"])
    if found := _NAMED.search(text):
        if found["ids"]:
            raise ValueError(f"{one.name}: found groups over an order of devices {found['ids'].strip()}, expected the mesh's own")
        return _named(found["axes"], found["over"])
    if found := _LISTED.search(text):
        listed = [tuple(int(i) for i in group.split(",") if i) for group in re.findall(r"\{([\d,]*)\}", found["groups"])]
        return listed or [tuple(range(count))]
    if found := _PAIRS.search(text):
        pairs = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", found["pairs"])]
        return _chains(pairs)
    raise ValueError(f"{one.name}: found no groups of devices in {text[:200]!r}")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _iota(shape: str, dims: str, order: str | None) -> list[tuple[int, ...]]:
    ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    if order:
        ids = ids.transpose(_numbers(order))
    return [tuple(map(int, row)) for row in ids.reshape(_numbers(shape))]


def _named(axes: str, over: str) -> list[tuple[int, ...]]:
    """Groups over axes of a mesh of the compiler's own, `'a'=2,'b'=4` over `'b'`, or over a part of one, `'b':(1)2`."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    shape: list[int] = []  # an axis of which a part is named is split in three: what is before, the part, what is after
    taken: list[tuple[int, int]] = []  # (place in what is named, dimension)
    wanted = {name: (place, before, part) for place, (name, before, part) in enumerate(re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", over))}
    for name, size in sizes.items():
        if name not in wanted:
            shape.append(size)
            continue
        place, before, part = wanted[name]
        if part:
            shape += [int(before), int(part), size // int(before) // int(part)]
            taken.append((place, len(shape) - 2))
        else:
            shape.append(size)
            taken.append((place, len(shape) - 1))
    inner = [dimension for _, dimension in sorted(taken)]
    outer = [dimension for dimension in range(len(shape)) if dimension not in inner]
    ids = np.arange(math.prod(shape)).reshape(shape).transpose(outer + inner)
    return [tuple(map(int, row)) for row in ids.reshape(-1, math.prod(shape[d] for d in inner))]


def _chains(pairs: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Devices that pairs of sender and receiver join."""
    group_of: dict[int, set[int]] = {}
    for source, target in pairs:
        joined = group_of.get(source, {source}) | group_of.get(target, {target})
        for member in joined:
            group_of[member] = joined
    return [tuple(sorted(group)) for group in {id(group): group for group in group_of.values()}.values()]


def _axes(groups: Sequence[tuple[int, ...]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes along which the places of a group differ, where each group is all of them; () where it is not."""
    places = np.stack(np.unravel_index(np.asarray(groups[0]), tuple(mesh.values())), 1)
    over = tuple(axis for axis, values in zip(mesh, places.T, strict=True) if len(set(values.tolist())) > 1)
    return over if math.prod(mesh[axis] for axis in over) == len(groups[0]) else ()


@dataclasses.dataclass(frozen=True)
class Line:
    """Collectives of one kind over the same axes, together."""

    kind: str
    axes: tuple[str, ...]
    count: int  # written in the program
    turns: float  # run
    total_bytes: float


def by_kind(found: Iterable[Collective]) -> list[Line]:
    """Returns the collectives summed by kind and axes, most bytes first."""
    lines: dict[tuple[str, tuple[str, ...]], Line] = {}
    for one in found:
        key = (one.kind, one.axes)
        old = lines.get(key, Line(one.kind, one.axes, 0, 0.0, 0.0))
        lines[key] = Line(one.kind, one.axes, old.count + 1, old.turns + one.turns, old.total_bytes + one.total_bytes)
    return sorted(lines.values(), key=lambda line: -line.total_bytes)
