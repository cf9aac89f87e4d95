"""What a run on a topology comes to, from its compiled step: memory, collectives, seconds at published rates, hours, hosts, storage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ofa_jax.config.hardware import Topology
from ofa_jax.config.schema import RunConfig
from ofa_jax.models.floors import kept_bytes, step_floors
from ofa_jax.models.operations import sequences_a_row, step_operations
from ofa_jax.pods import components as parts
from ofa_jax.pods.collectives import KINDS, SLICES, Line, by_kind, collectives, mesh_of_slice
from ofa_jax.pods.costs import costs
from ofa_jax.pods.cycles import expected
from ofa_jax.pods.decoding import CompiledDecoding
from ofa_jax.pods.program import CompiledStep, StepMemory, checkpoint_bytes
from ofa_jax.pods.roofline import Path, Times, mfu, path_between, path_over, times

SPARE = 0.1  # of a chip's memory that a step leaves free
# Of one core that makes rows of captions (docs/results/preparation.md: 460 a second on two), and of a stored picture with its texts.
ROWS_CORE_S, ROW_BYTES = 230.0, 60e3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A run on a topology. Seconds are those of the roofline: what the hardware allows, not what a program reaches."""

    config: str
    topology: str
    chips: int
    hosts: int
    mesh: dict[str, int]
    layers: str
    remat: str
    micros: int
    rows: int  # of a global batch
    sequences: int
    memory: StepMemory
    memory_floor: float  # bytes of a chip: the state, the batch, gradients, and what enters each layer
    memory_limit: float  # bytes of a chip
    operations: dict[str, float]  # of a step on the global batch, by component, as the model needs them
    executed: float  # on one chip, with what is computed again
    num_bytes: float  # of memory that one chip reads and writes in a step
    collectives: list[Line]
    components: list[parts.Component]  # none where the hardware's rates are not known
    times: Times
    mfu: float
    steps: int
    checkpoint_bytes: int
    host_rows_s: float  # that a host must make
    host_cores: float  # which that takes
    host_cores_there: int
    storage_bytes_s: float  # of all hosts together
    compile_s: float
    decoding: CompiledDecoding | None = None

    @property
    def fits(self) -> bool:
        """Whether the step leaves `SPARE` of the chip's memory, and generation, beside the state, too."""
        return max(self.memory.peak, self.decoding_peak) <= (1 - SPARE) * self.memory_limit

    @property
    def decoding_peak(self) -> int:
        """Bytes of a chip while a run in training generates: what it takes, parameters included, and the rest of the state."""
        if self.decoding is None:
            return 0
        return max(self.decoding.embed_peak, self.decoding.search_peak) + self.memory.optimizer + self.memory.average

    @property
    def rows_s(self) -> float:
        return self.rows / self.times.step_s if self.times.step_s else math.nan

    @property
    def hours(self) -> float:
        return self.steps * self.times.step_s / 3600

    def to_dict(self) -> dict[str, Any]:
        """Returns all numbers by name, as JSON holds them."""
        found = dataclasses.asdict(self)
        found["times"] |= {"step_s": self.times.step_s}
        found["memory"] |= {"working": self.memory.working}
        derived = {"fits": self.fits, "rows_s": self.rows_s, "sequences_s": self.rows_s * self.sequences / self.rows}
        return found | derived | {"hours": self.hours, "chip_hours": self.hours * self.chips}


def estimate(
    config: RunConfig, topology: Topology, compiled: CompiledStep, *, rows_core_s: float = ROWS_CORE_S, row_bytes: float = ROW_BYTES
) -> Estimate:
    """Returns what a run of `config` on `topology` comes to.

    rows_core_s: rows a second that a core of a host makes. row_bytes: of a row's record in storage. Nothing is predicted for hardware whose
    rates are not known (seconds are 0, their quotients NaN).
    """
    hardware, mesh = topology.hardware, compiled.mesh
    sent = collectives(compiled.program, mesh, slices=topology.slices)
    spent = costs(compiled.program, skip=KINDS)
    paths = {one.axes: _path(one.axes, mesh, compiled.places, topology) for one in sent}
    if hardware.bf16_flops:
        seconds = times(spent, sent, hardware, paths)
    else:
        seconds = Times(0.0, 0.0, 0.0, 0.0, 0.0)
    operations = dict(step_operations(config))
    tensor = mesh["tensor"]
    shards, memory = topology.chips // tensor, compiled.memory
    floors = step_floors(config, params_bytes=memory.params, shards=shards, tensor=tensor)
    priced = parts.components(spent, expected(compiled.program), floors, hardware) if hardware.bf16_flops else []
    rows = sum(block.rows for block in config.data.row_blocks)
    rows_s = rows / seconds.step_s if seconds.step_s else math.nan
    return Estimate(
        config=config.name,
        topology=topology.text,
        chips=topology.chips,
        hosts=topology.hosts,
        mesh=dict(mesh),
        layers=config.model.layers,
        remat=config.model.remat,
        micros=config.optimizer.accumulate,
        rows=rows,
        sequences=sum(block.rows * sequences_a_row(block) for block in config.data.row_blocks),
        memory=memory,
        memory_floor=memory.params * 2
        + memory.optimizer
        + memory.average
        + memory.other
        + memory.batch
        + kept_bytes(config, shards=shards),
        memory_limit=hardware.program_bytes,
        operations=operations,
        executed=sum(cost.operations * cost.turns for cost in spent),
        num_bytes=sum(cost.num_bytes * cost.turns for cost in spent),
        collectives=by_kind(sent),
        components=priced,
        times=seconds,
        mfu=mfu(sum(operations.values()), seconds, chips=topology.chips, hardware=hardware) if seconds.step_s else math.nan,
        steps=config.steps,
        checkpoint_bytes=checkpoint_bytes(config),
        host_rows_s=rows_s / topology.hosts,
        host_cores=rows_s / topology.hosts / rows_core_s,
        host_cores_there=hardware.host_cores,
        storage_bytes_s=rows_s * row_bytes,
        compile_s=compiled.lower_s + compiled.compile_s,
    )


def _path(axes: tuple[str, ...], mesh: Mapping[str, int], places: np.ndarray, topology: Topology) -> Path:
    """The path of a collective over `axes`, as `pods.collectives` names them."""
    if axes == (SLICES,):
        return path_between(topology)
    return path_over(axes or tuple(mesh), mesh_of_slice(mesh, topology.slices), places[: topology.slice_chips], topology)


def table(found: Estimate) -> str:
    """Returns the estimate as a page of text."""
    memory, seconds = found.memory, found.times
    mesh = " x ".join(f"{axis} {size}" for axis, size in found.mesh.items())
    lines = [
        f"{found.config} on {found.topology}: {found.chips} chips, {found.hosts} hosts; mesh {mesh}; {found.rows:,} rows a step, "
        f"{found.rows / found.chips:g} a chip in {found.micros} part(s); layers {found.layers}, remat {found.remat}",
        "",
        "memory of a chip",
        *_rows(
            {
                "parameters": memory.params,
                "optimizer": memory.optimizer,
                "average": memory.average,
                "statistics": memory.other,
                "batch": memory.batch,
                "activations, gradients, workspace": memory.working,
            },
            _gb,
        ),
        f"  {'peak':36} {_gb(memory.peak):>12}   of {_gb(found.memory_limit)}, {1 - memory.peak / found.memory_limit:.0%} to spare",
        f"  {'floor':36} {_gb(found.memory_floor):>12}   state, gradients, batch, and what enters each layer",
        "",
        "operations of a step, all chips",
        *_rows(found.operations, _flop),
        f"  {'on each chip, with what is repeated':36} {_flop(found.executed):>12}, {_gb(found.num_bytes)} of memory read and written",
        "",
        "sent, a chip and step",
    ]
    lines += [
        f"  {line.kind:20} {' x '.join(line.axes) or '(no axis)':15} {line.turns:7,.0f} times {_gb(line.total_bytes):>12}"
        for line in found.collectives
    ] or ["  nothing"]
    if seconds.step_s:
        bound = "compute" if seconds.compute_s >= seconds.memory_s else "memory"
        lines += [
            "",
            "at published rates, nothing overlapping",
            f"  a step {_ms(seconds.step_s)} ms: {_ms(seconds.local_s)} on the chip (operations {_ms(seconds.compute_s)}, memory "
            f"{_ms(seconds.memory_s)}: by {bound}), {_ms(seconds.network_s)} between chips, {_ms(seconds.outer_s)} between slices or hosts",
            f"  {found.rows_s:,.0f} rows/s, {found.rows_s / found.chips:,.1f} a chip; MFU {found.mfu:.0%} at best",
            f"  {found.steps:,} steps: {found.hours:,.1f} hours, {found.hours * found.chips:,.0f} chip-hours",
            f"  a host makes {found.host_rows_s:,.0f} rows/s: {found.host_cores:,.1f} of its {found.host_cores_there} cores; storage gives "
            f"{found.storage_bytes_s / 1e6:,.0f} MB/s",
        ]
    if found.components:
        lines += [
            "",
            "a chip's step by part of the model, at published rates, and as the compiler prices it",
            *parts.lines(found.components),
        ]
    if found.decoding:
        lines += ["", *_decoding_lines(found.decoding, found)]
    lines += ["", f"a checkpoint {_gb(found.checkpoint_bytes)}; compiled in {found.compile_s:.0f} s"]
    return "\n".join(lines)


def _decoding_lines(decoding: CompiledDecoding, found: Estimate) -> list[str]:
    sent = sum(line.total_bytes for line in decoding.collectives)
    turns = sum(line.turns for line in decoding.collectives)
    return [
        f"generation in training: captions of {decoding.pictures} pictures a chip, beam {decoding.beam}, {decoding.max_len} tokens",
        f"  features {_gb(decoding.embed_peak)}, search {_gb(decoding.search_peak)}, with the rest of the state {_gb(found.decoding_peak)} "
        f"of {_gb(found.memory_limit)}; sent once a call {_gb(sent)} in {turns:,.0f} collectives",
    ]


def advise(found: Estimate) -> str:
    """Returns what to do about a run that does not leave `SPARE` of a chip's memory."""
    return (
        f"it does not leave a tenth of the memory: {max(found.memory.peak, found.decoding_peak) / 1e9:.2f} of "
        f"{found.memory_limit / 1e9:.2f} GB; raise mesh.fsdp or optimizer.accumulate, or model.remat=full; --search tries them"
    )


def _rows(values: Mapping[str, float], text: Any) -> list[str]:
    return [f"  {name:36} {text(value):>12}" for name, value in values.items() if value]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"


def _flop(count: float) -> str:
    return f"{count / 1e12:,.2f} TFLOP" if count >= 1e11 else f"{count / 1e9:,.2f} GFLOP"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
