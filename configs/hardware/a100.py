"""NVIDIA A100 SXM 80 GB in hosts of 8 as DGX A100 has them: NVLink inside a host, a 200 Gbit/s port for each GPU between hosts."""

from ofa_jax.config.hardware import Hardware

_CHIP = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_HOST = "https://docs.nvidia.com/dgx/dgxa100-user-guide/introduction-to-dgxa100.html"

HARDWARE = Hardware(
    name="a100",
    title="A100 80GB",
    platform="gpu",
    kinds=("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
    bf16_flops=312e12,
    memory_bytes=80e9,
    memory_rate=2_039e9,
    link_rate=300e9,
    host_chips=8,
    host_cores=128,
    host_memory_bytes=2_048e9,
    host_network_rate=200e9,
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
