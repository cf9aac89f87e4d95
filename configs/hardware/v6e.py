"""Cloud TPU v6e ("Trillium"): hosts of 4 chips in a 2-D torus of up to 256."""

from ofa_jax.config.hardware import Hardware

_DOC = "https://cloud.google.com/tpu/docs/v6e"

HARDWARE = Hardware(
    name="v6e",
    title="TPU v6e",
    platform="tpu",
    kinds=("TPU v6 lite", "TPU v6e"),
    bf16_flops=918e12,
    memory_bytes=32 * 2**30,
    usable_bytes=31.24 * 2**30,
    memory_rate=1_638e9,
    link_rate=100e9,  # 800 GB/s of a chip, over 4 links in two directions
    host_chips=4,
    # A host's cores and memory are not checked against the page; nothing but the share of cores in use rests on them.
    host_cores=180,
    host_memory_bytes=720e9,
    host_network_rate=25e9,
    torus=2,
    ring_multiple=16,
    shapes=("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    layers="scan",
    remat="dots",
    attention="pallas",
    fsdp=16,
    sources={
        "bf16_flops": _DOC,
        "memory_bytes": _DOC,
        "usable_bytes": "what libtpu 0.0.48.1 says to a program that is too large",
        "memory_rate": _DOC,
        "link_rate": _DOC,
        "host_network_rate": "https://jax-ml.github.io/scaling-book/tpus/",
        "host_cores": "https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus",
        "shapes": _DOC,
    },
)
