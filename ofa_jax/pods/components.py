"""What each part of the model takes in a compiled step, beside what it must take at least.

Parts are the scopes that the model's modules are traced under (`pods/scopes`): a fusion belongs where its product does, a copy that the
compiler made to what it copies. What has no scope near it is "other".
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from ofa_jax.config.hardware import Hardware
from ofa_jax.models.floors import Floor
from ofa_jax.pods.costs import Cost
from ofa_jax.pods.cycles import Expected

OTHER = "other"
_PARTS: Mapping[str, Sequence[str]] = {
    "resnet": (),
    "embedding": (),
    "encoder": ("inputs", "positions", "attention", "ffn"),
    "decoder": ("positions", "self_attention", "cross_attention", "ffn"),
    "logits": (),
    "exchange": (),
    "optimizer": (),
}
_WORD = re.compile(r"\w+")


@functools.lru_cache(maxsize=65536)
def component_of(scope: str) -> str:
    """Returns the part of the model that a scope names (`Instruction.scope`), as `models/operations` writes it, or `OTHER`."""
    words = iter(_WORD.findall(scope))
    part = next((word for word in words if word in _PARTS), OTHER)
    inner = next((word for word in words if word in _PARTS.get(part, ())), "")
    return f"{part}/{inner}" if inner else part


@dataclasses.dataclass(frozen=True)
class Component:
    """What a part of the model takes of one chip in a step, and what it must."""

    name: str
    operations: float
    num_bytes: float  # of memory, read and written
    seconds: float  # the larger of both at published rates, instruction by instruction
    expected_s: float  # by the compiler's own prices, of what it prices (`pods/cycles`); 0 where the clock is not known
    floor: Floor
    floor_s: float  # at published rates

    def numbers(self) -> tuple[float, ...]:
        """Returns the numbers of its line: TFLOP, GB and ms, each beside its floor, and the ms that the compiler expects."""
        work = (self.operations / 1e12, self.floor.operations / 1e12, self.num_bytes / 1e9, self.floor.num_bytes / 1e9)
        return (*work, self.seconds * 1e3, self.floor_s * 1e3, self.expected_s * 1e3)


def lines(found: Sequence[Component]) -> list[str]:
    """Returns the table of a step's parts, with their sum; without the compiler's column where it has no price."""
    names = ("TFLOP", "floor", "GB", "floor", "ms", "floor", "compiler")
    count = len(names) if any(one.expected_s for one in found) else len(names) - 1
    rows = {one.name: one.numbers()[:count] for one in found}
    sums = [sum(values) for values in zip(*rows.values(), strict=True)]
    head = f"  {'':24}" + "".join(f" {name:>9}" for name in names[:count])
    return [head, *(_line(name, numbers) for name, numbers in rows.items()), _line("all", sums)]


def _line(name: str, numbers: Iterable[float]) -> str:
    return f"  {name:24}" + "".join(f" {number:9,.2f}" if place < 4 else f" {number:9,.1f}" for place, number in enumerate(numbers))


def components(costs: Iterable[Cost], expected: Iterable[Expected], floors: Mapping[str, Floor], hardware: Hardware) -> list[Component]:
    """Returns the parts in the model's order, those that neither take nor must take anything left out, with `OTHER` last.

    hardware: its rates must be known.
    """

    def at_least(floor: Floor) -> float:
        return floor.seconds(flops=hardware.bf16_flops, memory_rate=hardware.memory_rate)

    operations: dict[str, float] = collections.defaultdict(float)
    num_bytes: dict[str, float] = collections.defaultdict(float)
    seconds: dict[str, float] = collections.defaultdict(float)
    priced: dict[str, float] = collections.defaultdict(float)
    for cost in costs:
        name = component_of(cost.scope)
        operations[name] += cost.turns * cost.operations
        num_bytes[name] += cost.turns * cost.num_bytes
        seconds[name] += cost.turns * max(cost.operations / hardware.bf16_flops, cost.num_bytes / hardware.memory_rate)
    for one in expected:
        if one.cycles is not None and hardware.clock_hz:
            priced[component_of(one.scope)] += one.cycles / hardware.clock_hz
    order = [name for part, inner in _PARTS.items() for name in (part, *(f"{part}/{word}" for word in inner))] + [OTHER]
    there = operations.keys() | floors.keys() | priced.keys()
    found = [(name, floors.get(name, Floor(0.0, 0.0))) for name in order if name in there]
    return [
        Component(name, operations[name], num_bytes[name], seconds[name], priced[name], floor, at_least(floor)) for name, floor in found
    ]
