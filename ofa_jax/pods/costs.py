"""What every instruction of a compiled program costs: operations of its products, and bytes that it reads from and writes to memory.

Operations are counted as `models/operations` does, 2 for a multiply-add of products and convolutions; sums, norms and activations are not.
Bytes are those of operands and results that lie in the device's main memory, whatever the tiles pad; of an operand that an instruction
only slices, the slice. What a fusion keeps inside costs nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from ofa_jax.pods.hlo import Array, Computation, Instruction, Program
from ofa_jax.pods.scopes import Scopes

# These move nothing: they name what is there, or wait for what was counted where it began.
FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "while",
        "conditional",
        "call",
        "copy-done",
        "slice-done",
        "async-done",
        "async-update",
        "add-dependency",
        "opt-barrier",
        "optimization-barrier",
        "domain",
        "iota",
    ]
)
_SLICES = ("dynamic-slice", "slice", "gather")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)")
_COUNT = re.compile(r"(feature|batch)_group_count=(\d+)")
_DIMS = re.compile(r"(lhs|rhs)_contracting_dims=\{([\d,]*)\}")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one instruction, with its turns."""

    name: str
    opcode: str
    scope: str
    operations: float
    num_bytes: float
    turns: float


def costs(program: Program, *, skip: tuple[str, ...] = ()) -> list[Cost]:
    """Returns the cost of every instruction that is executed and costs anything; those of the opcodes `skip` are left out."""
    counter, scopes = _Counter(program), Scopes(program)
    found = []
    for computation, one, turns in program.executed():
        if one.opcode in FREE or one.opcode.removesuffix("-start").removesuffix("-done") in skip:
            continue
        operations, num_bytes = counter.operations(computation, one), counter.num_bytes(computation, one)
        if operations or num_bytes:
            found.append(Cost(one.name, one.opcode, scopes.of(computation, one), operations, num_bytes, turns))
    return found


class _Counter:
    def __init__(self, program: Program):
        self.program = program
        self._inside: dict[str, float] = {}

    def operations(self, computation: Computation, one: Instruction) -> float:
        if one.opcode == "dot":
            return _dot(one, computation)
        if one.opcode == "convolution":
            return _convolution(one, computation)
        if one.opcode in ("fusion", "async-start"):
            return sum(self._of_computation(name) for role, name in one.called().items() if role == "calls")
        return 0.0

    def _of_computation(self, name: str) -> float:
        if name not in self._inside:
            computation = self.program.computations[name]
            self._inside[name] = sum(self.operations(computation, one) for one in computation.instructions.values())
        return self._inside[name]

    def num_bytes(self, computation: Computation, one: Instruction) -> float:
        operands = [computation.instructions[name] for name in one.operands]
        if one.opcode in _SLICES:
            return 2.0 * _main(one.arrays)
        if one.opcode == "dynamic-update-slice":
            return 2.0 * _main(operands[1].arrays)
        if one.opcode == "copy-start":  # its shape holds the result, the operand and a semaphore
            return float(_main(one.arrays[:2]))
        if one.opcode == "slice-start":  # its shape holds the operand, the result and a semaphore
            source, result = one.arrays[:2]
            return float(result.num_bytes * ((source.space == 0) + (result.space == 0)))
        if one.opcode != "fusion":
            return float(_main(one.arrays) + sum(_main(operand.arrays) for operand in operands))
        called = self.program.computations[one.called()["calls"]]
        read = sum(self._read(called, place, operand) for place, operand in enumerate(operands))
        return read + self._written(called, one)

    def _read(self, called: Computation, place: int, operand: Instruction) -> float:
        """Bytes of an operand that a fusion reads."""
        whole = _main(operand.arrays)
        return self._read_inside(called, place, float(whole)) if whole else 0.0

    def _read_inside(self, called: Computation, place: int, whole: float) -> float:
        """Bytes of parameter `place` of so many bytes that are read: where it is only sliced, those of the slices; where only a part of it
        is updated, none. TPUs nest fusions: a product's operand may be a fusion that slices a stack of layers."""
        if place not in called.parameters:
            return 0.0
        total = 0.0
        for user in self._users(called, called.parameters[place]):
            if user.opcode in _SLICES:
                total += sum(array.num_bytes for array in user.arrays)
            elif user.opcode == "fusion":
                inner = self.program.computations[user.called()["calls"]]
                places = [at for at, name in enumerate(user.operands) if _behind_bitcasts(called, name) is called.parameters[place]]
                total += sum(self._read_inside(inner, at, whole) for at in places)
            elif user.opcode != "dynamic-update-slice" or _behind_bitcasts(called, user.operands[0]) is not called.parameters[place]:
                return whole
        return min(total, whole)

    def _users(self, called: Computation, one: Instruction) -> Iterator[Instruction]:
        for user in called.users.get(one.name, ()):
            if user.opcode == "bitcast":
                yield from self._users(called, user)
            else:
                yield user

    def _written(self, called: Computation, one: Instruction) -> float:
        """Bytes that a fusion writes: of a root that updates a part of what it got, that part."""
        whole = float(_main(one.arrays))
        return self._written_inside(called, whole) if whole else 0.0

    def _written_inside(self, called: Computation, whole: float) -> float:
        root = _behind_bitcasts(called, called.root.name)
        if root.opcode == "dynamic-update-slice":
            return float(sum(array.num_bytes for array in called.instructions[root.operands[1]].arrays))
        if root.opcode == "fusion":
            return self._written_inside(self.program.computations[root.called()["calls"]], whole)
        return whole


def _behind_bitcasts(called: Computation, name: str) -> Instruction:
    one = called.instructions[name]
    while one.opcode == "bitcast":
        one = called.instructions[one.operands[0]]
    return one


def _main(arrays: tuple[Array, ...]) -> int:
    return sum(array.num_bytes for array in arrays if array.space == 0)


def _dot(one: Instruction, computation: Computation) -> float:
    left = computation.instructions[one.operands[0]].arrays[0]
    contracted = dict(_DIMS.findall(one.attributes)).get("lhs", "")
    return 2.0 * one.arrays[0].size * math.prod(left.dims[int(place)] for place in contracted.split(",") if place)


def _convolution(one: Instruction, computation: Computation) -> float:
    """2 x (pairs of an output and a kernel position that meet an input) x features; positions of padding and of dilation meet none.

    TPUs write batched matrix products as convolutions over dilated inputs, so that these must not be counted.
    """
    labels = _LABELS.search(one.attributes)
    if labels is None:
        raise ValueError(f"convolution {one.name}: found no dim_labels in {one.attributes[:120]!r}")
    left, right = (computation.instructions[name].arrays[0].dims for name in one.operands[:2])
    input_labels, kernel_labels, output_labels = labels.groups()
    out = one.arrays[0].dims
    groups = {name: int(count) for name, count in _COUNT.findall(one.attributes)}
    spatial = [label for label in kernel_labels if label.isdigit()]
    window = _window(one, len(spatial))
    pairs = 1.0
    for place, label in enumerate(spatial):
        pairs *= _meetings(
            left[input_labels.index(label)],
            right[kernel_labels.index(label)],
            out[output_labels.index(label)],
            *(window[name][place] for name in ("stride", "pad", "lhs_dilate", "rhs_dilate")),
        )
    batch, features = out[output_labels.index("b")], out[output_labels.index("f")]
    return 2.0 * pairs * batch / groups.get("batch", 1) * features * right[kernel_labels.index("i")] * groups.get("batch", 1)


def _window(one: Instruction, rank: int) -> dict[str, list[int]]:
    found = _WINDOW.search(one.attributes)
    fields = dict(part.split("=", 1) for part in found[1].split()) if found else {}

    def numbers(name: str, default: int) -> list[int]:
        return [int(value) for value in fields[name].split("x")] if name in fields else [default] * rank

    pads = [int(pair.split("_")[0]) for pair in fields["pad"].split("x")] if "pad" in fields else [0] * rank
    return {"stride": numbers("stride", 1), "pad": pads, "lhs_dilate": numbers("lhs_dilate", 1), "rhs_dilate": numbers("rhs_dilate", 1)}


@functools.lru_cache(maxsize=4096)
def _meetings(size: int, kernel: int, out: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """Returns how many pairs of an output and a kernel position of one dimension meet an element of the input."""
    reach = (size - 1) * lhs_dilate
    return sum(0 <= (at := o * stride + k * rhs_dilate - pad) <= reach and at % lhs_dilate == 0 for o in range(out) for k in range(kernel))
