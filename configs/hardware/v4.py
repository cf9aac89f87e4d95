"""Cloud TPU v4: 4 chips a host, a 3-D torus of up to 4,096; a chip is one device (its two cores share their memory, "megacore")."""

from ofa_jax.config.hardware import Hardware

_DOC = "https://cloud.google.com/tpu/docs/v4"
_BOOK = "https://jax-ml.github.io/scaling-book/tpus/"

HARDWARE = Hardware(
    name="v4",
    title="TPU v4",
    platform="tpu",
    kinds=("TPU v4",),
    bf16_flops=275e12,
    memory_bytes=32 * 2**30,
    usable_bytes=30.75 * 2**30,
    memory_rate=1_200e9,
    clock_hz=1.05e9,
    link_rate=45e9,
    host_chips=4,
    # A host's cores and memory are not checked against the page; nothing but the share of cores in use rests on them.
    host_cores=240,
    host_memory_bytes=407e9,
    host_network_rate=25e9,
    torus=3,
    ring_multiple=4,
    shapes=(
        "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
    ),
    compile_options={"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1), "wrap": (True, True, True)},
    layers="scan",
    remat="dots",
    attention="pallas",
    fsdp=16,
    sources={
        "bf16_flops": _DOC,
        "memory_bytes": _DOC,
        "clock_hz": "bf16_flops over 2 cores of 4 units of 128 x 128, a multiply-add each a cycle",
        "usable_bytes": "what libtpu 0.0.48.1 says to a program that is too large",
        "memory_rate": _DOC,
        "link_rate": _BOOK,
        "host_network_rate": _BOOK,
        "host_cores": "https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus",
        "shapes": _DOC,
    },
)  # fmt: skip
