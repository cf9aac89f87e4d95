"""Seconds of collectives and instructions from published rates, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_jax.config.hardware import load_hardware, parse_topology
from ofa_jax.pods.collectives import Collective
from ofa_jax.pods.costs import Cost
from ofa_jax.pods.roofline import HOP_S, OUTER_HOP_S, collective_s, path_between, path_of, path_over, times


def places(shape: tuple[int, ...], slices: int = 1) -> np.ndarray:
    return np.stack(np.unravel_index(np.arange(slices * int(np.prod(shape))), (slices, *shape)), 1)


def test_rings_close_where_a_side_is_whole():
    v5p, v5e = parse_topology("v5p:4x4x4"), parse_topology("v5e:4x4")
    mesh = {"data": 16, "fsdp": 4, "tensor": 1}
    fsdp = path_over(("fsdp",), mesh, places((4, 4, 4)), v5p)
    assert (fsdp.rate, fsdp.hops, fsdp.inner, fsdp.outer) == (2 * 100e9, 2, 4, 1)
    assert path_over(("data",), mesh, places((4, 4, 4)), v5p).rate == 4 * 100e9
    line = path_of(places((4, 4))[:4], v5e)  # four in a row of a small slice: no ring
    assert (line.rate, line.hops) == (50e9, 3)
    assert path_of(places((16, 16))[:16], parse_topology("v5e:16x16")).rate == 2 * 50e9


def test_a_ring_takes_the_bytes_over_the_rate():
    path = path_of(places((4, 4, 4))[:4], parse_topology("v5p:4x4x4"))
    gathered, _ = collective_s("all-gather", 800e6, path)
    assert gathered == pytest.approx(800e6 * 3 / 4 / 200e9 + 2 * HOP_S)
    assert collective_s("all-reduce", 800e6, path)[0] == pytest.approx(2 * (gathered - 2 * HOP_S) + 2 * HOP_S)


def test_between_slices_a_chip_sends_its_share_by_its_hosts_network():
    topology = parse_topology("v5e:8x8", slices=2)
    path = path_over(("data",), {"data": 2, "fsdp": 64, "tensor": 1}, places((8, 8), slices=2), topology)
    assert (path.inner, path.outer, path.outer_rate) == (1, 2, 12.5e9 / 4)
    assert collective_s("all-reduce", 1e9, path) == (0.0, pytest.approx(2 * 1e9 / 2 / (12.5e9 / 4) + OUTER_HOP_S))
    assert collective_s("all-reduce", 1e9, path_between(topology)) == collective_s("all-reduce", 1e9, path)
    whole = path_over(("data", "fsdp"), {"data": 2, "fsdp": 64, "tensor": 1}, places((8, 8), slices=2), topology)
    assert (whole.inner, whole.outer) == (64, 2)


def test_a_step_is_its_instructions_and_then_its_collectives():
    hardware = load_hardware("v5p")
    path = path_of(places((4, 4, 4))[:4], parse_topology("v5p:4x4x4"))
    product, copy = Cost("a", "fusion", "", 459e9, 1e6, 2), Cost("b", "copy", "", 0, 2_765e6, 3)
    sent = Collective("all-gather", ("fsdp",), 4, 800_000_000, 2, "", "bf16")
    found = times([product, copy], [sent], hardware, {("fsdp",): path})
    assert found.compute_s == pytest.approx(2e-3) and found.local_s == pytest.approx(2e-3 + 3e-3)
    assert found.step_s == pytest.approx(5e-3 + 2 * collective_s("all-gather", 800e6, path)[0])
