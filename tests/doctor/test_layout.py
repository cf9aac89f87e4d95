"""Meshes that do not divide are told with those that do; the meshes need not be here."""

from __future__ import annotations

import dataclasses

from configs.ofa_large import get_config as large
from configs.quickstart_vqgan import get_config as vqgan
from ofa_jax.config.check import check
from ofa_jax.config.schema import MeshConfig
from ofa_jax.doctor.layout import check_layout, legal_counts, legal_meshes


def on(**sizes: int):
    return dataclasses.replace(large(), mesh=MeshConfig(**sizes))


def test_a_mesh_that_fits():
    [found] = check_layout(on(fsdp=8, tensor=2), 64)
    assert found.status == "ok" and found.found.startswith("64 device(s) as data 4 x fsdp 8 x tensor 2 share 3,072 rows, 16 heads, 59,520")
    assert check_layout(vqgan("debug"), 4)[0].status == "ok"


def test_heads_vocabulary_and_rows_that_do_not_divide_are_named_with_what_fits():
    found = check_layout(on(data=1, tensor=3), 3)
    assert [one.status for one in found] == ["FAIL"] * len(found) and "model.num_heads: found 16" in found[0].text
    many = check_layout(large(), 256)
    assert len(many) == 4 and "nearest 256" in many[0].text
    assert "1 more faults alike; what fits: --config.mesh.data=64 --config.mesh.fsdp=1 --config.mesh.tensor=4" in many[-1].text
    [*_, last] = check_layout(large(), 7)
    assert "no mesh of 7 devices fits; with the batch as it is, 4 or 8 devices do" in last.text


def test_every_legal_mesh_is_legal():
    meshes = list(legal_meshes(large(), 16))
    assert {"data": 16, "fsdp": 1, "tensor": 1} in meshes and {"data": 1, "fsdp": 1, "tensor": 16} in meshes
    for sizes in meshes:
        check(on(**sizes), 16)
    assert legal_counts(large(), 16) == [8, 32]
