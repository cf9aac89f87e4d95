"""Cloud TPU v5p: 4 chips a host, a 3-D torus; the largest slice that can be had has 6,144 chips."""

from ofa_jax.config.hardware import Hardware

_DOC = "https://cloud.google.com/tpu/docs/v5p"

HARDWARE = Hardware(
    name="v5p",
    title="TPU v5p",
    platform="tpu",
    kinds=("TPU v5", "TPU v5p"),
    bf16_flops=459e12,
    memory_bytes=95 * 2**30,
    usable_bytes=95.73 * 2**30,
    memory_rate=2_765e9,
    clock_hz=1.75e9,
    link_rate=100e9,  # 1,200 GB/s of a chip, over 6 links in two directions
    host_chips=4,
    host_cores=208,
    host_memory_bytes=448e9,
    host_network_rate=25e9,  # 50 Gbit/s of a chip
    torus=3,
    ring_multiple=4,
    shapes=(
        "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24",
    ),
    layers="scan",
    remat="dots",
    attention="pallas",
    fsdp=16,
    sources=dict.fromkeys(
        ("bf16_flops", "memory_bytes", "memory_rate", "link_rate", "host_network_rate", "host_cores", "host_memory_bytes", "shapes"), _DOC
    )
    | {
        "clock_hz": "bf16_flops over 2 cores of 4 units of 128 x 128, a multiply-add each a cycle",
        "usable_bytes": "what libtpu 0.0.48.1 says to a program that is too large",
    },
)  # fmt: skip
