"""The files of configs/hardware, and topologies by name."""

from __future__ import annotations

import math

import pytest

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.hardware import hardware_names, load_hardware, parse_topology
from ofa_jax.parallel.chips import CHIPS


@pytest.mark.parametrize("name", hardware_names())
def test_a_file_is_whole_and_says_where_its_numbers_are_from(name: str):
    found = load_hardware(name)
    assert found.name == name and found.title and found.kinds
    if found.platform == "cpu":
        return  # of which nothing is predicted
    for field in ("bf16_flops", "memory_bytes", "memory_rate", "link_rate", "host_network_rate", "host_cores"):
        assert getattr(found, field) > 0 and found.sources[field].startswith("https://"), field
    assert (found.torus == 0) == (not found.shapes)
    assert all(len(shape.split("x")) == found.torus for shape in found.shapes)


def test_the_peaks_are_those_of_the_table_of_chips():
    by_kind = {kind: chip for chip in CHIPS for kind in chip.kinds}
    for name in hardware_names():
        found = load_hardware(name)
        for kind in found.kinds:
            if kind in by_kind:
                assert found.bf16_flops == by_kind[kind].bf16_flops


def test_a_topology_has_chips_and_hosts():
    found = parse_topology("v5p:4x4x4", slices=2)
    assert (found.shape, found.chips, found.hosts, found.text) == ((4, 4, 4), 128, 32, "2 x v5p:4x4x4")
    assert parse_topology("h100:16").hosts == 2
    assert all(parse_topology(f"v5e:{shape}").chips == math.prod(map(int, shape.split("x"))) for shape in load_hardware("v5e").shapes)


@pytest.mark.parametrize(
    ("text", "slices", "said"),
    [
        ("v5q:4x4x4", 1, "hardware: found 'v5q', expected a file of configs/hardware; did you mean v5p?"),
        ("v5e:4x5", 1, "topology: found 'v5e:4x5', which TPU v5e does not come in; nearest: 4x4, 4x8, 2x4"),
        ("v5p:64", 1, "topology: found 'v5p:64', which TPU v5p does not come in; nearest: 4x4x4,"),
        ("v5e", 1, "topology: found 'v5e', expected v5e:SHAPE, as in v5e:16x16"),
        ("h100:4x2", 1, "topology: found 'h100:4x2', expected a number of chips, as in h100:8"),
        ("v5e:4x4", 0, "slices: found 0, expected 1 or more"),
        ("a100:8", 2, "slices: found 2 of a100:8, expected 1"),
    ],
)
def test_what_cannot_be_had_is_told_with_what_can(text: str, slices: int, said: str):
    with pytest.raises(ConfigError) as error:
        parse_topology(text, slices=slices)
    assert str(error.value).startswith(said)
