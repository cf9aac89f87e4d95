"""A compiled program as computations and instructions, read from the text that XLA prints of it, with how often each is run.

Only what is counted afterwards is kept: names, shapes, operations, operands and the attributes that say what an instruction calls. XLA's
own cost analysis counts the body of a loop once; here a body counts as often as its loop turns.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
_SHAPE = re.compile(r"(?P<dtype>[a-z][a-z0-9]*)\[(?P<dims>[0-9,]*)\](?:\{(?P<layout>[^}]*)\})?")
_NAME = re.compile(r"%?([\w.\-]+)")
_CALLED = re.compile(r"(?P<role>calls|to_apply|body|condition|true_computation|false_computation)=%?(?P<name>[\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SCOPE = re.compile(r'op_name="([^"]*)"')
_FAR = re.compile(r"S\((\d+)\)")  # a memory space other than the device's main memory


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape."""

    dtype: str
    dims: tuple[int, ...]
    space: int  # 0: the device's main memory; TPUs: 1 is the memory beside the matrix units, others hold semaphores and scalars

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Bytes without what a tiled layout pads."""
        return -(-self.size * _BITS[self.dtype] // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of its result, a tuple's parts one after another
    operands: tuple[str, ...]
    attributes: str  # what stands behind the operands
    constant: str  # the operand's text of a constant and of a parameter
    is_root: bool

    @property
    def scope(self) -> str:
        """The path of names under which JAX traced it, "" where the compiler made it."""
        found = _SCOPE.search(self.attributes)
        return found[1] if found else ""

    def called(self) -> dict[str, str]:
        """Returns the computations that it names, by role: calls, to_apply, body, condition, branch 0, branch 1, ..."""
        roles = {found["role"]: found["name"] for found in _CALLED.finditer(self.attributes)}
        if found := _BRANCHES.search(self.attributes):
            roles |= {f"branch {i}": name.strip().lstrip("%") for i, name in enumerate(found[1].split(","))}
        return roles


@dataclasses.dataclass(frozen=True)
class Computation:
    """What is run in order: an entry, the body of a loop, or what a fusion holds."""

    name: str
    instructions: dict[str, Instruction]  # in the order of the text, which is the schedule's

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions.values() if one.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(one.constant): one for one in self.instructions.values() if one.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = collections.defaultdict(list)
        for one in self.instructions.values():
            for name in one.operands:
                found[name].append(one)
        return found


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations of a compiled module."""

    computations: dict[str, Computation]
    entry: str
    open_turns: int = 0  # of loops whose end depends on data; 0: such a loop is refused

    def executed(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Yields every instruction that is scheduled, with its computation and how often it is run: those of loops by their turns, those of
        a conditional as if each branch were taken. What fusions, reductions and sorts apply inside is theirs and not yielded."""
        turns: dict[str, float] = collections.defaultdict(float)
        for name, count in self._calls(self.entry, 1.0):
            turns[name] += count
        for name, count in turns.items():
            for one in self.computations[name].instructions.values():
                yield self.computations[name], one, count

    def _calls(self, name: str, count: float) -> Iterator[tuple[str, float]]:
        yield name, count
        for one in self.computations[name].instructions.values():
            if one.opcode not in ("while", "conditional", "call", "async-start"):
                continue
            roles = one.called()
            times = count * self.trips(one) if one.opcode == "while" else count
            for role, called in roles.items():
                if role == "condition" or (one.opcode == "async-start" and self._is_fused(called)):
                    continue
                yield from self._calls(called, times)

    def _is_fused(self, name: str) -> bool:
        """Whether an asynchronous computation is one instruction, which is counted where it is started."""
        return len([one for one in self.computations[name].instructions.values() if one.opcode != "parameter"]) == 1

    def trips(self, loop: Instruction) -> int:
        """Returns how often the body of a `while` is run. Raises ValueError where neither the text nor the condition tells."""
        if found := _TRIPS.search(loop.attributes):
            return int(found[1])
        condition = self.computations[loop.called()["condition"]]
        if self.open_turns:
            return self.open_turns
        for one in self._deep(condition):
            if one.opcode == "compare" and "direction=LT" in one.attributes:
                limits = [int(c.constant) for c in self._deep(condition) if c.opcode == "constant" and c.constant.isdigit()]
                if len(limits) == 1:
                    return limits[0]
        raise ValueError(f"while {loop.name}: found no count of its turns in {condition.name}")

    def _deep(self, computation: Computation) -> Iterator[Instruction]:
        """Yields the instructions of a computation and of what its fusions call."""
        for one in computation.instructions.values():
            yield one
            if one.opcode in ("fusion", "call"):
                for called in one.called().values():
                    yield from self._deep(self.computations[called])


def parse(text: str) -> Program:
    """Returns the program of `jax.stages.Compiled.as_text()`. Raises ValueError where a line is not understood."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if line.startswith("HloModule") or not line.strip():
            continue
        if not line[0].isspace():
            if line.startswith("}"):
                computations[name] = Computation(name, instructions)
            elif line.rstrip().endswith("{"):
                found = _NAME.match(line.removeprefix("ENTRY ").strip())
                if found is None:
                    raise ValueError(f"text of a program: found the line {line[:80]!r}, expected the head of a computation")
                name, instructions = found[1], {}
                entry = name if line.startswith("ENTRY") else entry
            continue
        one = _instruction(line.strip())
        instructions[one.name] = one
    if not entry:
        raise ValueError("text of a program: found no ENTRY")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    is_root = line.startswith("ROOT ")
    name, equals, rest = line.removeprefix("ROOT ").partition(" = ")
    if not equals:
        raise ValueError(f"text of a program: found the line {line[:80]!r}, expected an instruction")
    shape_end = _balanced(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:shape_end], rest[shape_end:].lstrip()
    opcode, _, _ = rest.partition("(")
    inside_end = _balanced(rest, len(opcode))
    inside = rest[len(opcode) + 1 : inside_end - 1]
    leaf = opcode in ("constant", "parameter", "iota")
    return Instruction(
        name=name.strip().lstrip("%"),
        opcode=opcode,
        arrays=tuple(arrays(shape)),
        operands=() if leaf else tuple(_operand_names(inside)),
        attributes=rest[inside_end:],
        constant=inside if leaf else "",
        is_root=is_root,
    )


def arrays(shape: str) -> Iterator[Array]:
    """Yields the arrays of a shape as XLA writes it, `bf16[2,3]{1,0:T(8,128)S(1)}` or a tuple of such."""
    for found in _SHAPE.finditer(re.sub(r"/\*.*?\*/", "", shape)):
        far = _FAR.search(found["layout"] or "")
        dims = tuple(int(size) for size in found["dims"].split(",") if size)
        yield Array(found["dtype"], dims, int(far[1]) if far else 0)


def _balanced(text: str, start: int) -> int:
    """Returns the position behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    raise ValueError(f"text of a program: found an open parenthesis in {text[:80]!r}")


def _operand_names(inside: str) -> Iterator[str]:
    """Yields the names of operands; newer texts write names alone, older ones each with its shape before it."""
    for found in re.finditer(r"%([\w.\-]+)", inside):
        yield found[1]
