"""What accelerators can do at best, for comparing a run with it (MFU) and for predicting one: peak rate and memory by device kind.

Peaks are of bf16 matrix products with dense operands, of one JAX device (a chip), as its maker publishes them; NVIDIA's data sheets give
twice as much, for operands of which half are zeros. Memory is the published number of gigabytes of 1e9 bytes: what a program may
use of it, the device tells itself (`memory_stats()["bytes_limit"]`). What is not in the table is not known: nothing is guessed from a
similar name, and a part of a GPU (MIG) is not the GPU.
"""

from __future__ import annotations

import dataclasses

from ofa_jax.config.errors import ConfigError, nearest

_TPU = "https://cloud.google.com/tpu/docs/"
_H100 = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator. `kinds` are the names that JAX gives it (`jax.Device.device_kind`), in full."""

    name: str
    kinds: tuple[str, ...]
    bf16_flops: float  # operations a second, 2 for a multiply-add
    memory_bytes: float
    source: str


CHIPS = (
    Chip("TPU v4", ("TPU v4",), 275e12, 32e9, _TPU + "v4"),
    Chip("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16e9, _TPU + "v5e"),
    Chip("TPU v5p", ("TPU v5", "TPU v5p"), 459e12, 95e9, _TPU + "v5p"),
    Chip("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32e9, _TPU + "v6e"),
    Chip("H100 SXM", ("NVIDIA H100 80GB HBM3",), 989e12, 80e9, _H100),
    Chip("H100 PCIe", ("NVIDIA H100 PCIe",), 756e12, 80e9, _H100),
    Chip("H200 SXM", ("NVIDIA H200",), 989e12, 141e9, _H200),
    Chip("A100 40GB", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312e12, 40e9, _A100),
    Chip("A100 80GB", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), 312e12, 80e9, _A100),
)
_BY_KIND = {kind: chip for chip in CHIPS for kind in chip.kinds}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the row of `jax.Device.device_kind`, or None where it is not in the table (a CPU, another accelerator)."""
    return _BY_KIND.get(device_kind)


def chip_named(name: str) -> Chip:
    """Returns the row called `name` ("TPU v5e"), or of the device kind `name`. Raises `ConfigError` where there is none."""
    found = next((chip for chip in CHIPS if chip.name == name), None) or chip_of(name)
    if found is None:
        raise ConfigError(f"chip: found {name!r}, expected one of the table; {nearest(name, [chip.name for chip in CHIPS])}")
    return found
