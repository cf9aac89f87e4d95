"""Cloud TPU v5e: hosts of 4 chips in a 2-D torus of up to 256."""

from ofa_jax.config.hardware import Hardware

_DOC = "https://cloud.google.com/tpu/docs/v5e"

HARDWARE = Hardware(
    name="v5e",
    title="TPU v5e",
    platform="tpu",
    kinds=("TPU v5 lite", "TPU v5e"),
    bf16_flops=197e12,
    memory_bytes=16 * 2**30,
    usable_bytes=15.75 * 2**30,
    memory_rate=819e9,
    clock_hz=1.5e9,
    link_rate=50e9,  # 400 GB/s of a chip, over 4 links in two directions
    host_chips=4,
    host_cores=112,
    host_memory_bytes=192e9,
    host_network_rate=12.5e9,  # 6.4 Tbit/s of a pod of 64 hosts
    torus=2,
    ring_multiple=16,
    shapes=("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    layers="scan",
    remat="full",
    attention="pallas",
    fsdp=16,
    sources={
        "bf16_flops": _DOC,
        "memory_bytes": _DOC,
        "clock_hz": "bf16_flops over 4 units of 128 x 128, a multiply-add each a cycle",
        "usable_bytes": "what libtpu 0.0.48.1 says to a program that is too large",
        "memory_rate": _DOC,
        "link_rate": _DOC,
        "host_network_rate": _DOC,
        "host_cores": "https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus",
        "shapes": _DOC,
    },
)
