"""What a run needs of the devices' memory and of the host's, against what is there.

Parameters, moments, average and gradients are arithmetic on the state's shapes and shardings. Activations are not estimated: they depend on
what the compiler fuses, recomputes and keeps. `compiled_bytes` asks the compiler itself, with shapes alone.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ofa_jax.config.schema import AnyRun
from ofa_jax.doctor.layout import placed_state
from ofa_jax.doctor.report import Finding
from ofa_jax.models.precision import policy
from ofa_jax.parallel import hosts
from ofa_jax.parallel.mesh import batch_sharding, make_mesh
from ofa_jax.pods.program import OUT_OF_MEMORY
from ofa_jax.train.gradients import working_bytes
from ofa_jax.train.objective import make_objective
from ofa_jax.train.state import with_shardings
from ofa_jax.train.step import abstract_blocks, make_train_step

_TIGHT = 0.7  # share of a device's memory that may be taken before activations


@dataclasses.dataclass(frozen=True)
class StateBytes:
    """Bytes on the device that holds most."""

    params: int
    optimizer: int
    average: int
    gradients: int  # whole on every device, until they are summed
    other: int  # running statistics, the guard, counters
    gathered: int = 0  # parameters that a step collects from the other devices, in the compute dtype

    @property
    def total(self) -> int:
        """Bytes of a device at the moment of the update."""
        return self.params + self.optimizer + self.average + self.gathered + self.gradients + self.other


def state_bytes(config: AnyRun, num_devices: int) -> StateBytes:
    """Returns what the state takes over `num_devices`, by arithmetic. Raises `UserError` where the mesh does not fit."""
    abstract, shardings = placed_state(config, num_devices)

    def on_device(part: Any, placed: Any) -> int:
        leaves, places = jax.tree.leaves(part), jax.tree.leaves(placed)
        return sum(math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in zip(leaves, places, strict=True))

    params = on_device(abstract.params, shardings.params)
    gathered, gradients = 0, params
    if make_objective(config).by_rows:
        gathered, gradients = working_bytes(abstract.params, shardings.params, compute=np.dtype(policy(config.precision).compute))
    return StateBytes(
        params=params,
        optimizer=on_device(abstract.opt_state, shardings.opt_state),
        average=0 if abstract.ema is None else params,
        gradients=gradients,
        other=on_device((abstract.stats, abstract.guard), (shardings.stats, shardings.guard)),
        gathered=gathered,
    )


def batch_bytes(config: AnyRun) -> int:
    """Returns the bytes of one global batch."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(abstract_blocks(config)))


def compiled_bytes(config: AnyRun, *, num_tasks: int) -> int:
    """Returns the bytes that the training step takes of a device, activations and the batch included, by compiling it for the devices that
    are here. No parameter is made; it takes as long as the compilation at the start of the run.

    Raises JAX's own error where the compiler finds that it does not fit.
    """
    mesh = make_mesh(config.mesh)
    abstract, shardings = placed_state(config, mesh.size)
    # The same specs over the devices that are here.
    named = jax.tree.map(lambda where: jax.sharding.NamedSharding(mesh, where.spec), shardings)
    step: Any = make_train_step(config, mesh, num_tasks=num_tasks)
    found = step.lower(with_shardings(abstract, named), abstract_blocks(config, batch_sharding(mesh))).compile().memory_analysis()
    taken = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes - found.alias_size_in_bytes
    return max(taken, int(getattr(found, "peak_memory_in_bytes", 0)))


def device_limit() -> tuple[float | None, str]:
    """Returns (bytes that a program may take of one of this host's devices, whose they are). CPU devices share what is free of the host's
    memory; None where a device does not tell."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"]), device.device_kind
    if device.platform == "cpu":
        return available_bytes() / jax.local_device_count(), "this host's free memory" + (
            f" over {jax.local_device_count()} devices" if jax.local_device_count() > 1 else ""
        )
    return None, device.device_kind


def available_bytes() -> float:
    """Returns the bytes of this host's memory that programs may still take, by the kernel and by the limit of a container."""
    free = next(int(line.split()[1]) * 1024.0 for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, float(limit.read_text()) - float(used.read_text()))
    return free


def check_device_memory(state: StateBytes, limit: float | None, of: str, *, compiled: int | None, num_batch_bytes: float) -> list[Finding]:
    """Returns whether a step fits a device: by the compiler's number where there is one, else by the state and the batch alone.

    limit: bytes of a device, None where that is not known; of: whose they are. num_batch_bytes: of the batch on one device.
    """
    parts = {
        "parameters": state.params,
        "optimizer": state.optimizer,
        "average": state.average,
        "gathered parameters": state.gathered,
        "gradients": state.gradients,
        "batch": num_batch_bytes,
    }
    said = " + ".join(f"{name} {_gb(size)}" for name, size in parts.items() if size)
    alone = state.total + num_batch_bytes
    numbers: dict[str, float | int | str | None] = {**{f"{name}_bytes": size for name, size in parts.items()}, "limit_bytes": limit}
    numbers["compiled_bytes"] = compiled
    needed = alone if compiled is None else compiled
    beside = (
        "activations not counted, --compile does" if compiled is None else f"the compiled step takes {_gb(compiled)}, activations included"
    )
    said = f"a device holds {_gb(alone)} ({said}); {beside}"
    if limit is None:
        return [Finding("memory", "WARN", f"{said}; how much {of} has is not known", numbers=numbers)]
    said = f"{said}; {of}: {_gb(limit)}"
    advice = "raise mesh.fsdp (and tensor), optimizer.accumulate, or model.remat"
    if needed > limit:
        return [Finding("memory", "FAIL", said, f"at most {_gb(limit)}", advice, numbers, limit - needed)]
    if compiled is None and needed > _TIGHT * limit:
        return [Finding("memory", "WARN", said, f"at most {_TIGHT:.0%} of it before activations", advice, numbers, limit - needed)]
    return [Finding("memory", "ok", said, numbers=numbers, measure=limit - needed)]


def check_host_memory(config: AnyRun, state: StateBytes, *, on_cpu: bool) -> list[Finding]:
    """Returns whether this host's free memory holds the batches ahead and the copy of the state that a save makes."""
    data = config.data
    ahead = data.prefetch + max(data.num_workers, 1) + 1  # made ahead, in the making, and in use
    batches = ahead * batch_bytes(config) / hosts.count()
    local = jax.local_device_count()
    copy = (state.params + state.optimizer + state.average + state.other) * local
    needed = batches + copy + (state.total * local if on_cpu else 0)
    free = available_bytes()
    parts = [f"{ahead} batches {_gb(batches)}", f"the copy of a save up to {_gb(copy)}"]
    parts += [f"the CPU devices' state {_gb(state.total * local)}"] if on_cpu else []
    numbers: dict[str, float | int | str | None] = {"needed_bytes": needed, "available_bytes": free}
    said = f"{_gb(free)} free; {' + '.join(parts)}"
    if needed > free:
        advice = "lower data.prefetch or data.num_workers, or take a host with more memory"
        return [Finding("host", "FAIL", said, f"{_gb(needed)} free", advice, numbers, free - needed)]
    return [Finding("host", "ok", said, numbers=numbers, measure=free - needed)]


def out_of_memory(error: Exception) -> Finding | None:
    """Returns the finding of a compilation that JAX gave up for want of memory, or None for another error."""
    if not any(words in str(error) for words in OUT_OF_MEMORY):
        return None
    said = " ".join(str(error).split())[:300]
    return Finding("memory", "FAIL", f"the step does not fit: {said}", advice="raise mesh.fsdp, optimizer.accumulate, or model.remat")


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
