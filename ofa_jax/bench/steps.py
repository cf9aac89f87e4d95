"""Times of the training step on noise, with what it takes: operations, the peak of the device as published and as measured, memory."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.bench.noise import noise_batch
from ofa_jax.config.hardware import hardware_of
from ofa_jax.config.schema import RunConfig
from ofa_jax.models.operations import sequences_a_row, step_operations
from ofa_jax.models.precision import policy
from ofa_jax.monitor.memory import high_water
from ofa_jax.parallel.mesh import check_rows, make_mesh
from ofa_jax.train.state import init_state
from ofa_jax.train.step import make_train_step

_SIDES = {"cpu": 2_048}  # of the matrices that are multiplied for the device's own peak
_SIDE = 8_192


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """What was measured of the training step on all devices of this process."""

    name: str
    device: str
    devices: int
    precision: str
    rows: int
    sequences: int
    positions: int  # source and target, of all sequences
    lower_s: float
    compile_s: float
    first_s: float
    step_s: tuple[float, ...]
    operations: dict[str, float]  # of a step, by component
    matmul_flops: float  # operations a second of one large product on one device, in the same run
    published_flops: float | None  # bf16, of one device
    program_bytes: int  # of the compiled step: arguments, results and what it needs beside them
    peak_bytes: int | None  # most memory in use on a device, where it keeps count
    accessed_bytes: float | None  # of memory, as XLA counts them: a loop's body once

    @property
    def median_s(self) -> float:
        return statistics.median(self.step_s)

    @property
    def sequences_s(self) -> float:
        return self.sequences / self.median_s

    @property
    def flops(self) -> float:
        """Operations a second of one device."""
        return sum(self.operations.values()) / self.median_s / self.devices

    def to_dict(self) -> dict[str, Any]:
        """Returns all numbers by name, as JSON holds them."""
        derived = {"median_s": self.median_s, "sequences_s": self.sequences_s, "flops": self.flops}
        shares = {"of_matmul": self.flops / self.matmul_flops}
        if self.published_flops:
            shares["mfu"] = self.flops / self.published_flops
        return dataclasses.asdict(self) | derived | shares

    def lines(self) -> list[str]:
        """Returns the numbers as lines of text."""
        total = sum(self.operations.values())
        parts = ", ".join(f"{name} {count / total:.0%}" for name, count in self.operations.items())
        peak = f"{self.flops / self.matmul_flops:.1%} of {_rate(self.matmul_flops)}, measured on a product"
        if self.published_flops:
            peak += f"; {self.flops / self.published_flops:.1%} of {_rate(self.published_flops)}, published (MFU)"
        used = "" if self.peak_bytes is None else f"; most in use {self.peak_bytes / 1e9:.2f} GB"
        accessed = "" if self.accessed_bytes is None else f"; XLA counts {self.accessed_bytes / 1e9:.1f} GB of memory read and written"
        return [
            f"ofa_jax  {self.name}, {self.precision}, {self.devices} x {self.device}: {self.rows} rows, {self.sequences} sequences, "
            f"{self.positions:,} tokens",
            f"  a step {self.median_s * 1e3:,.1f} ms (median of {len(self.step_s)}, {min(self.step_s) * 1e3:,.1f} to "
            f"{max(self.step_s) * 1e3:,.1f}): {self.sequences_s:,.2f} sequences/s, {self.positions / self.median_s:,.0f} tokens/s",
            f"  {total / 1e12:,.3f} TFLOP ({parts}): {_rate(self.flops)} a device, {peak}",
            f"  the program takes {self.program_bytes / 1e9:.2f} GB{used}{accessed}",
            f"  traced in {self.lower_s:.1f} s, compiled in {self.compile_s:.1f} s, first step {self.first_s:.2f} s",
        ]


def _rate(flops: float) -> str:
    return f"{flops / 1e12:,.3g} TFLOP/s"


def time_step(config: RunConfig, *, steps: int) -> StepTimes:
    """Returns the times of `steps` training steps of `config` on a batch of noise, after two that warm up, each waited for.

    A step's time is that of a run of `group_of(steps)`, by as many: a wait a step is what a training loop does not do.
    Raises `UserError` where the devices cannot share the rows.
    """
    mesh = make_mesh(config.mesh)
    check_rows(config.data.row_blocks, mesh)
    step: Any = make_train_step(config, mesh, num_tasks=1)
    state, batch = init_state(config, mesh), noise_batch(config, mesh)
    began = time.perf_counter()
    lowered = step.lower(state, batch)
    lower_s = time.perf_counter() - began
    began = time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - began

    def run(count: int) -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(count):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - started) / count

    first_s = run(1)
    run(1)
    group = group_of(steps)
    times = tuple(run(group) for _ in range(-(-steps // group)))
    devices = list(mesh.devices.flat)
    hardware = hardware_of(devices[0].device_kind)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    blocks = config.data.row_blocks
    return StepTimes(
        name=config.name,
        device=devices[0].device_kind,
        devices=len(devices),
        precision=config.precision,
        rows=sum(block.rows for block in blocks),
        sequences=sum(block.rows * sequences_a_row(block) for block in blocks),
        positions=sum(block.num_positions(block.rows * sequences_a_row(block)) for block in blocks),
        lower_s=lower_s,
        compile_s=compile_s,
        first_s=first_s,
        step_s=times,
        operations=dict(step_operations(config)),
        matmul_flops=matmul_flops(policy(config.precision).compute),
        published_flops=(hardware and config.precision == "bf16" and hardware.bf16_flops) or None,
        program_bytes=int(memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes),
        peak_bytes=high_water(devices).get("memory/device_peak_bytes"),
        accessed_bytes=cost.get("bytes accessed"),
    )


def group_of(steps: int) -> int:
    """Returns how many steps are timed together when so many are; other programs beside this one do the same."""
    return 4 if steps >= 8 else 1


def matmul_flops(dtype: np.dtype, *, repeats: int = 5) -> float:
    """Returns the operations a second of the product of two square matrices of `dtype` on one device, the best of `repeats`."""
    device = jax.devices()[0]
    side = _SIDES.get(device.platform, _SIDE)
    a = jnp.ones((side, side), dtype, device=device)
    product = jax.jit(lambda a: a @ a)
    return 2.0 * side**3 / fastest(lambda: product(a), repeats)


def fastest(run: Callable[[], Any], repeats: int) -> float:
    """Returns the seconds of the fastest of `repeats` calls, each waited for, after one that warms up."""
    jax.block_until_ready(run())
    best = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        best = min(best, time.perf_counter() - began)
    return best
