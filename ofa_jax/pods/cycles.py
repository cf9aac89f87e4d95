"""What libtpu itself expects a program's instructions to take: the cycles that it writes beside every fusion, copy and product.

They know of units that wait for each other and of memory that is not read at its full rate, which a roofline does not: one large product in
bf16 comes to 88 to 93 % of the published rate on v4, v5e and v5p, reading and writing an array to 70 to 80 %. They are those of a chip,
whose cores share the work. Gathers, scatters, sorts and programs of Pallas have none: what is not priced is said.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable

from ofa_jax.pods.costs import FREE
from ofa_jax.pods.hlo import Program
from ofa_jax.pods.scopes import Scopes

_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_SENT = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast", "send", "recv")


@dataclasses.dataclass(frozen=True)
class Expected:
    """What an instruction is expected to take, all its turns together."""

    name: str
    opcode: str
    scope: str
    cycles: float | None  # None: libtpu does not say
    turns: float


def expected(program: Program) -> list[Expected]:
    """Returns what every instruction takes that does work on the chip, those that take longest first and those without a price before them.

    What is sent to other chips is left out (`pods/collectives`).
    """
    found, scopes = [], Scopes(program)
    for computation, one, turns in program.executed():
        kind = one.opcode.removesuffix("-start").removesuffix("-done")
        if one.opcode in FREE or kind in _SENT or one.opcode.endswith("-done"):
            continue
        price = _CYCLES.search(one.attributes)
        found.append(Expected(one.name, one.opcode, scopes.of(computation, one), float(price[1]) * turns if price else None, turns))
    return sorted(found, key=lambda one: -float("inf") if one.cycles is None else -one.cycles)


def total(found: Iterable[Expected]) -> float:
    """Returns the cycles of all that have a price."""
    return sum(one.cycles or 0.0 for one in found)


def by(found: Iterable[Expected], label: Callable[[Expected], str]) -> dict[str, float]:
    """Returns the cycles by label, most first."""
    sums: dict[str, float] = collections.defaultdict(float)
    for one in found:
        sums[label(one)] += one.cycles or 0.0
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
