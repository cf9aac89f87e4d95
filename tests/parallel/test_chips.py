"""The table of accelerators: each name stands once, and a name that is only similar is not known."""

from __future__ import annotations

import jax

from ofa_jax.parallel.chips import CHIPS, chip_of


def test_names_are_found_in_full_only():
    found = chip_of("TPU v5 lite")
    assert found is not None and (found.name, found.bf16_flops, found.memory_bytes) == ("TPU v5e", 197e12, 16e9)
    assert chip_of("TPU v5") is not found
    # A v4i is not a v4, a seventh of an H100 is not one, and what this test runs on is a CPU.
    for kind in ("TPU v4 lite", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100", "", jax.devices("cpu")[0].device_kind):
        assert chip_of(kind) is None


def test_a_name_stands_in_one_row():
    kinds = [kind for chip in CHIPS for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    assert all(1e13 < chip.bf16_flops < 1e16 and 1e10 <= chip.memory_bytes < 1e12 and chip.source.startswith("https://") for chip in CHIPS)
