"""Step time and MFU on numbers of chips that were not compiled for, from those that were (`pods.grid`).

A step's bytes over the links are linear in the rows of a chip: parameters are gathered and gradients summed once whatever the rows, tokens
meet the vocabulary for each row. So are operations and bytes of memory. Lines are fitted on 16, 64 and 256 chips; what they predict for 512
is compared with what was compiled. Where 512 are two slices, what those send beside it (sums between slices, and gathering their parts
again) does not change with rows or slices, and is taken from there. Seconds are those of `pods.roofline`, with the paths of the real
topology: nothing overlaps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.config.hardware import Topology
from ofa_jax.config.schema import MeshConfig
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.pods.collectives import SLICES, mesh_of_slice
from ofa_jax.pods.devices import describe
from ofa_jax.pods.roofline import Path, collective_s, path_between, path_over, place_of

FITTED, PREDICTED = (16, 64, 256), 512
GATHERED, SUMMED, COPIES, MOMENTS = "gathered over fsdp", "summed over fsdp", "summed over data", "summed over both"
EXCHANGES = (GATHERED, SUMMED, COPIES, MOMENTS)
_ONCE = (COPIES, MOMENTS)  # gradients of copies, and what batch norm and losses ask all chips: the same for any rows
_OVER = {GATHERED: ("fsdp",), SUMMED: ("fsdp",), COPIES: ("data",), MOMENTS: ("data", "fsdp"), SLICES: (SLICES,)}
_GATHERS = ("all-gather", "collective-permute", "all-to-all")


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
    several: Mapping[tuple[str, str], tuple[float, float]]  # (bytes, collectives) by (kind, place in `_OVER`) of what slices send beside it
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
    """Returns (bytes, collectives) of a point by `EXCHANGES`. A mesh with one part of `data` has nothing of the last two."""
    found = dict.fromkeys(EXCHANGES, (0.0, 0.0))
    for line in numbers["collectives"]:
        if not _is_of_slices(line):
            name = _name(line)
            num_bytes, turns = found[name]
            found[name] = (num_bytes + line["total_bytes"], turns + line["turns"])
    return found


def _name(line: Mapping[str, Any]) -> str:
    if line["axes"] == [SLICES]:
        return SLICES
    if "data" in line["axes"]:
        return MOMENTS if "fsdp" in line["axes"] else COPIES
    return GATHERED if line["kind"] in _GATHERS else SUMMED


def _is_of_slices(line: Mapping[str, Any]) -> bool:
    """Whether it is sent because there are several slices: over `data`, one slice gathers nothing."""
    return line["axes"] == [SLICES] or ("data" in line["axes"] and line["kind"] in _GATHERS)


def fit(points: Mapping[str, Any], size: str, kind: str, *, chips: Sequence[int] = FITTED) -> Fit:
    """Returns the lines through the points of one size and kind at `chips`; of that at `PREDICTED` what slices send beside it, where there
    are several. points: of `grid.compile_all`.

    Raises KeyError where a point lacks.
    """
    found = [points[f"{size} {kind} {count}"] for count in chips]
    rows = [one["rows"] / one["chips"] for one in found]
    sent = [exchanges(one) for one in found]
    lines = {}
    for name in EXCHANGES:
        there = [(row, one[name][0]) for row, one in zip(rows, sent, strict=True) if name not in _ONCE or one[name][0]]
        lines[name] = Line(float(np.mean([size for _, size in there])), 0.0) if name in _ONCE else _line(*zip(*there, strict=True))
    several = {
        (line["kind"], _name(line)): (line["total_bytes"], line["turns"])
        for line in points[f"{size} {kind} {PREDICTED}"]["collectives"]
        if _is_of_slices(line)
    }
    return Fit(
        size,
        kind,
        found[0]["mesh"]["fsdp"],
        lines,
        {name: max(one[name][1] for one in sent[1:]) for name in EXCHANGES},
        _line(rows, [one["times"]["local_s"] for one in found]),
        _line(rows, [sum(one["operations"].values()) / one["chips"] for one in found]),
        several,
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
    """Returns how the chips of each exchange lie to each other, by `EXCHANGES` (and `SLICES`), for a mesh of (data, fsdp) over the
    topology."""
    mesh = make_mesh(MeshConfig(fsdp=min(fsdp, topology.chips)), devices=describe(topology))
    places = np.array([place_of(device) for device in mesh.devices.flat])[: topology.slice_chips]
    inside = mesh_of_slice(dict(mesh.shape), topology.slices)
    found = {name: path_over(axes, inside, places, topology) for name, axes in _OVER.items() if name != SLICES}
    return found | {SLICES: path_between(topology)}


def forecast(fitted: Fit, topology: Topology, over: Mapping[str, Path], *, rows: float) -> Forecast:
    """Returns the step of so many rows a chip. over: of `paths`."""
    sums = {GATHERED: "all-gather", SUMMED: "reduce-scatter", COPIES: "all-reduce", MOMENTS: "all-reduce"}
    sent = [(kind, name, fitted.exchanges[name].at(rows), fitted.turns[name]) for name, kind in sums.items()]
    if topology.slices > 1:
        sent += [(kind, name, num_bytes, turns) for (kind, name), (num_bytes, turns) in fitted.several.items()]
    seconds = 0.0
    for kind, name, num_bytes, turns in sent:
        if over[name].inner * over[name].outer > 1 and turns:
            seconds += turns * sum(collective_s(kind, num_bytes / turns, over[name]))
    step = fitted.local.at(rows) + seconds
    return Forecast(topology.chips, rows, step, seconds, fitted.operations.at(rows) / (step * topology.hardware.bf16_flops))
