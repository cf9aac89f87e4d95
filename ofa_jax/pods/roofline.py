"""How long a compiled step takes at best: by its operations, its bytes of memory and its bytes between chips, at published rates.

    step = sum over instructions of max(operations / peak, bytes / memory rate) + sum over collectives of their time

Nothing is taken to overlap with a collective. A ring of n chips gathers V bytes in V (n - 1) / n / W, W being the rate at which one chip
sends, and all-reduces them in twice that (scaling book, "Sharded matrices"). W is that of all links of the torus along which the chips of
a group lie: two a dimension where it closes to a ring, else one. Between slices, and between hosts of GPUs, it is a chip's share of its
host's network, and each exchange waits for hosts to answer. What a program reaches of these rates is for a chip to tell.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ofa_jax.config.hardware import Hardware, Topology
from ofa_jax.pods.collectives import Collective
from ofa_jax.pods.costs import Cost

HOP_S = 1e-6  # from a chip to its neighbour (scaling book)
OUTER_HOP_S = 50e-6  # from a chip by two hosts to a chip of another slice: an assumption, nothing is published
_ROUNDS = {"all-reduce": 2.0, "collective-permute": 1.0}  # how often a collective's bytes go round; others: once


@dataclasses.dataclass(frozen=True)
class Path:
    """How the chips of a group reach each other."""

    rate: float  # bytes a second that one chip sends inside of a slice (or a host of GPUs), over all links it has there
    hops: int  # to the farthest, half a ring or a whole line a dimension
    inner: int  # chips of a group in one slice or host
    outer: int  # slices or hosts of a group
    outer_rate: float  # bytes a second of one chip between them


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a step on one chip."""

    compute_s: float  # operations at the peak alone
    memory_s: float  # bytes of memory alone
    local_s: float  # the larger of the two, instruction by instruction
    network_s: float  # collectives inside of slices, one after another
    outer_s: float  # what of them goes between slices or hosts

    @property
    def step_s(self) -> float:
        return self.local_s + self.network_s + self.outer_s


def place_of(device: Any) -> tuple[int, ...]:
    """Returns (slice, coordinates of the torus ...) of a TPU's description, (host, place in it) of another device."""
    if hasattr(device, "coords"):
        return (int(getattr(device, "slice_index", 0) or 0), *device.coords)
    return (int(device.process_index), int(device.id))


def path_over(axes: Sequence[str], mesh: Mapping[str, int], places: np.ndarray, topology: Topology) -> Path:
    """Returns how the chips of a group over `axes` of the mesh lie to each other.

    places: int [devices in the mesh's order, 1 + dimensions], `place_of` each.
    """
    sizes = tuple(mesh.values())
    grid = places.reshape(*sizes, places.shape[-1])
    index = tuple(slice(None) if axis in axes else 0 for axis in mesh)
    group = grid[index].reshape(-1, places.shape[-1])
    return path_of(group, topology)


def path_between(topology: Topology) -> Path:
    """Returns the path of an exchange between all slices, of which each chip hands on what it holds."""
    hardware = topology.hardware
    return Path(hardware.link_rate, 0, 1, topology.slices, hardware.host_network_rate / hardware.host_chips)


def path_of(group: np.ndarray, topology: Topology) -> Path:
    """Returns the path of a group of chips at the places `group`, int [n, 1 + dimensions]."""
    hardware = topology.hardware
    outer = len(set(group[:, 0].tolist()))
    inner = -(-len(group) // outer)
    share = hardware.host_network_rate / hardware.host_chips
    if not hardware.torus:
        hosts = outer if outer > 1 else -(-len(group) // hardware.host_chips)
        return Path(hardware.link_rate, 1, -(-len(group) // hosts), hosts, share)
    first = group[group[:, 0] == group[0, 0]][:, 1:]
    links, hops = 0, 0
    for dimension, side in enumerate(topology.shape):
        reach = len(set(first[:, dimension].tolist()))
        if reach < 2:
            continue
        ring = reach == side and side % hardware.ring_multiple == 0
        links += 2 if ring else 1
        hops += reach // 2 if ring else reach - 1
    return Path(max(links, 1) * hardware.link_rate, hops, inner, outer, share)


def collective_s(kind: str, num_bytes: float, path: Path) -> tuple[float, float]:
    """Returns the seconds of one collective of so many bytes (as `Collective` counts them): (inside of slices, between them).

    Between slices the chips of each share the bytes: a hierarchical collective sends a chip's part alone.
    """
    rounds = _ROUNDS.get(kind, 1.0)
    inside = 0.0
    if path.inner > 1:
        inside = rounds * num_bytes * (path.inner - 1) / path.inner / path.rate + path.hops * HOP_S
    between = 0.0
    if path.outer > 1:
        between = rounds * num_bytes / path.inner * (path.outer - 1) / path.outer / path.outer_rate + OUTER_HOP_S
    return inside, between


def times(costs: Iterable[Cost], collectives: Iterable[Collective], hardware: Hardware, paths: Mapping[tuple[str, ...], Path]) -> Times:
    """Returns the seconds of a step. paths: by axes of the mesh, of every collective; () for those whose groups are no axes."""
    compute = memory = local = 0.0
    for cost in costs:
        by_operations = cost.turns * cost.operations / hardware.bf16_flops
        by_bytes = cost.turns * cost.num_bytes / hardware.memory_rate
        compute, memory, local = compute + by_operations, memory + by_bytes, local + max(by_operations, by_bytes)
    network = outer = 0.0
    for one in collectives:
        inside, between = collective_s(one.kind, one.num_bytes, paths[one.axes])
        network, outer = network + one.turns * inside, outer + one.turns * between
    return Times(compute, memory, local, network, outer)


def mfu(operations: float, times: Times, *, chips: int, hardware: Hardware) -> float:
    """Returns the share of the chips' peak that a step's operations (of the model, on the global batch) take."""
    return operations / (times.step_s * chips * hardware.bf16_flops) if times.step_s else math.nan
