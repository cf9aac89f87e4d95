"""The files of configs/hardware, and topologies by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import pytest

from configs.ofa_tiny import get_config
from configs.vqgan_f8 import get_config as get_vqgan
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.hardware import hardware_names, hardware_of, load_hardware, parse_topology, suited
from ofa_jax.config.schema import MeshConfig, RunConfig


@pytest.mark.parametrize("name", hardware_names())
def test_a_file_is_whole_and_says_where_its_numbers_are_from(name: str):
    found = load_hardware(name)
    assert found.name == name and found.title and found.kinds
    if found.platform == "cpu":
        return  # of which nothing is predicted
    of_host = ("host_network_rate", "host_cores") if found.host_chips else ()
    for field in ("bf16_flops", "memory_bytes", "memory_rate", "link_rate", *of_host):
        assert getattr(found, field) > 0 and found.sources[field].startswith("https://"), field
    assert (found.torus == 0) == (not found.shapes)
    assert all(len(shape.split("x")) == found.torus for shape in found.shapes)


def test_devices_are_known_by_their_full_names_only():
    found = hardware_of("TPU v5 lite")
    assert found is not None and (found.name, found.bf16_flops) == ("v5e", 197e12)
    assert hardware_of("TPU v5").name == "v5p" and hardware_of(jax.devices("cpu")[0].device_kind).name == "cpu"
    # A v4i is not a v4, and a seventh of an H100 is not one.
    for kind in ("TPU v4 lite", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100", ""):
        assert hardware_of(kind) is None
    kinds = [kind for name in hardware_names() for kind in load_hardware(name).kinds]
    assert len(kinds) == len(set(kinds))


def test_a_config_takes_what_suits_the_hardware_where_it_leaves_it_open():
    config = get_config()
    found = suited(config, load_hardware("v5p"), num_devices=24)
    assert (found.model.layers, found.model.remat, found.mesh) == ("scan", "dots", MeshConfig(fsdp=8))
    asked = dataclasses.replace(config, mesh=MeshConfig(fsdp=2))
    assert suited(asked, load_hardware("v5p"), num_devices=24).mesh == asked.mesh
    on_cpu = dataclasses.replace(config, model=dataclasses.replace(config.model, convolution="matmul"))
    assert suited(config, load_hardware("cpu"), num_devices=8) == on_cpu
    vqgan = get_vqgan()
    assert suited(vqgan, load_hardware("v5p"), num_devices=8) == vqgan


def test_a_faster_attention_is_taken_where_it_makes_what_the_config_asks_for():
    config = get_config()

    def taken(config: RunConfig, **model: Any) -> str:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
        return suited(config, load_hardware("v5p"), num_devices=8).model.attention

    assert taken(config) == "pallas"
    assert taken(config, attention_dropout=0.1) == taken(config, prompt_lens=(4, 4)) == "reference"
    assert taken(dataclasses.replace(config, precision="f64")) == "reference"


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
