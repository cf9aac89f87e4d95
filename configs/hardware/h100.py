"""NVIDIA H100 SXM in hosts of 8 as DGX H100 has them: NVLink inside a host, a 400 Gbit/s port for each GPU between hosts."""

from ofa_jax.config.hardware import Hardware

_CHIP = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
_HOST = "https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html"

HARDWARE = Hardware(
    name="h100",
    title="H100 SXM",
    platform="gpu",
    kinds=("NVIDIA H100 80GB HBM3",),
    bf16_flops=989e12,  # half of the data sheet's, which is of operands of which half are zeros
    memory_bytes=80e9,
    memory_rate=3_350e9,
    link_rate=450e9,
    host_chips=8,
    host_cores=112,
    host_memory_bytes=2_048e9,
    host_network_rate=400e9,
    layers="unroll",
    fsdp=8,  # inside a host
    sources={
        "bf16_flops": _CHIP,
        "memory_bytes": _CHIP,
        "memory_rate": _CHIP,
        "link_rate": _CHIP,
        "host_cores": _HOST,
        "host_memory_bytes": _HOST,
        "host_network_rate": _HOST,
    },
)
