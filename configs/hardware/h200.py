"""NVIDIA H200 SXM in hosts of 8 as DGX H200 has them: an H100 with more and faster memory."""

from ofa_jax.config.hardware import Hardware

_CHIP = "https://www.nvidia.com/en-us/data-center/h200/"
_HOST = "https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html"

HARDWARE = Hardware(
    name="h200",
    title="H200 SXM",
    platform="gpu",
    kinds=("NVIDIA H200",),
    bf16_flops=989e12,  # half of the page's, which is of operands of which half are zeros
    memory_bytes=141e9,
    memory_rate=4_800e9,
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
