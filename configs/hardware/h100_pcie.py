"""NVIDIA H100 PCIe: a card in whatever host, with neighbours by PCIe."""

from ofa_jax.config.hardware import Hardware

_CHIP = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"

HARDWARE = Hardware(
    name="h100_pcie",
    title="H100 PCIe",
    platform="gpu",
    kinds=("NVIDIA H100 PCIe",),
    bf16_flops=756e12,  # half of the data sheet's, which is of operands of which half are zeros
    memory_bytes=80e9,
    memory_rate=2_000e9,
    link_rate=64e9,  # PCIe of the fifth generation: 128 GB/s in both directions
    host_chips=0,
    host_cores=0,
    host_memory_bytes=0.0,
    host_network_rate=0.0,
    layers="unroll",
    sources=dict.fromkeys(("bf16_flops", "memory_bytes", "memory_rate", "link_rate"), _CHIP),
)
