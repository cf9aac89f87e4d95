"""Step time and MFU on numbers of chips that were not compiled for, from those that were (`pods.grid`).

A step's bytes over the links are linear in the rows of a chip: parameters are gathered and gradients summed once whatever the rows, tokens
meet the vocabulary for each row. So are operations and bytes of memory. Lines are fitted on 16, 64 and 256 chips; what they predict for 512
is compared with what was compiled. Seconds are those of `pods.roofline`, with the paths of the real topology: nothing overlaps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.config.hardware import Topology
from ofa_jax.config.schema import MeshConfig
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.pods.devices import describe
from ofa_jax.pods.roofline import Path, collective_s, path_over, place_of

FITTED, PREDICTED = (16, 64, 256), 512
GATHERED, SUMMED, COPIES = "gathered over fsdp", "summed over fsdp", "summed over data"
EXCHANGES = (GATHERED, SUMMED, COPIES)


@dataclasses.dataclass(frozen=True)
class Line:
    """A quantity of a chip and step: `fixed` + `row` x rows of a chip."""

    fixed: float
    row: float

    def at(self, rows: float) -> float:
        return self.fixed + self.row * rows


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a step of one size on one kind of chip comes to by the rows of a chip."""

    size: str
    kind: str
    fsdp: int
    exchanges: Mapping[str, Line]  # bytes, by `EXCHANGES`
    turns: Mapping[str, float]  # collectives of each
    local: Line  # seconds
    operations: Line  # of the model, all chips' share of one
    batch: int  # the paper's rows


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A step on so many chips."""

    chips: int
    rows: float  # of a chip
    step_s: float
    sent_s: float
    mfu: float


def exchanges(numbers: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Returns (bytes, collectives) of a point by `EXCHANGES`. A mesh with one part of `data` has nothing of the last."""
    found = dict.fromkeys(EXCHANGES, (0.0, 0.0))
    for line in numbers["collectives"]:
        if "data" in line["axes"] and "fsdp" not in line["axes"]:
            name = COPIES
        else:
            name = GATHERED if line["kind"] in ("all-gather", "collective-permute", "all-to-all") else SUMMED
        num_bytes, turns = found[name]
        found[name] = (num_bytes + line["total_bytes"], turns + line["turns"])
    return found


def fit(points: Mapping[str, Any], size: str, kind: str, *, chips: Sequence[int] = FITTED) -> Fit:
    """Returns the lines through the points of one size and kind at `chips`. points: of `grid.compile_all`.

    Raises KeyError where a point lacks.
    """
    found = [points[f"{size} {kind} {count}"] for count in chips]
    rows = [one["rows"] / one["chips"] for one in found]
    sent = [exchanges(one) for one in found]
    lines = {}
    for name in EXCHANGES:
        there = [(row, one[name][0]) for row, one in zip(rows, sent, strict=True) if name != COPIES or one[name][0]]
        # Gradients are summed over `data` once, whatever the rows.
        lines[name] = Line(float(np.mean([size for _, size in there])), 0.0) if name == COPIES else _line(*zip(*there, strict=True))
    return Fit(
        size,
        kind,
        found[0]["mesh"]["fsdp"],
        lines,
        {name: max(one[name][1] for one in sent[1:]) for name in EXCHANGES},
        _line(rows, [one["times"]["local_s"] for one in found]),
        _line(rows, [sum(one["operations"].values()) / one["chips"] for one in found]),
        found[0]["rows"],
    )


def _line(xs: Iterable[float], ys: Iterable[float]) -> Line:
    """The line of the least squared error relative to each value."""
    x, y = np.asarray(list(xs), float), np.asarray(list(ys), float)
    weights = 1 / np.maximum(np.abs(y), 1e-30)
    row, fixed = np.polyfit(x, y, 1, w=weights)
    return Line(float(fixed), float(row))


def errors(points: Mapping[str, Any], size: str, kind: str) -> dict[str, float]:
    """Returns by how much of what was compiled for `PREDICTED` chips each exchange was predicted wrongly."""
    fitted, there = fit(points, size, kind), points[f"{size} {kind} {PREDICTED}"]
    rows = there["rows"] / there["chips"]
    return {name: fitted.exchanges[name].at(rows) / num_bytes - 1 for name, (num_bytes, _) in exchanges(there).items() if num_bytes}


def paths(topology: Topology, fsdp: int) -> dict[str, Path]:
    """Returns how the chips of each exchange lie to each other, by `EXCHANGES`, for a mesh of (data, fsdp) over the topology."""
    mesh = make_mesh(MeshConfig(fsdp=min(fsdp, topology.chips)), devices=describe(topology))
    places = np.array([place_of(device) for device in mesh.devices.flat])
    axes = {GATHERED: "fsdp", SUMMED: "fsdp", COPIES: "data"}
    return {name: path_over((axis,), dict(mesh.shape), places, topology) for name, axis in axes.items()}


def forecast(fitted: Fit, topology: Topology, over: Mapping[str, Path], *, rows: float) -> Forecast:
    """Returns the step of so many rows a chip. over: of `paths`."""
    sent = 0.0
    for name, line in fitted.exchanges.items():
        kind = "all-gather" if name == GATHERED else "reduce-scatter" if name == SUMMED else "all-reduce"
        turns = max(fitted.turns[name], 1.0)
        if over[name].inner * over[name].outer > 1:
            sent += turns * sum(collective_s(kind, line.at(rows) / turns, over[name]))
    step = fitted.local.at(rows) + sent
    return Forecast(topology.chips, rows, step, sent, fitted.operations.at(rows) / (step * topology.hardware.bf16_flops))
