"""A CPU, for programs that are compiled to be looked at: memory and cores of a usual laptop, no rate for a prediction."""

from ofa_jax.config.hardware import Hardware

HARDWARE = Hardware(
    name="cpu",
    title="CPU",
    platform="cpu",
    kinds=("cpu",),
    bf16_flops=0.0,  # not published as such: nothing is predicted
    memory_bytes=16e9,
    memory_rate=0.0,
    link_rate=0.0,
    host_chips=1,
    host_cores=8,
    host_memory_bytes=16e9,
    host_network_rate=0.0,
    convolution="matmul",  # a step of OFA-base with pictures takes 0.6 of the time (docs/performance.md)
)
