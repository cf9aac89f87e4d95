"""The most memory that was ever in use: of this process, of its data workers, of its devices. Asking waits for nothing."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol


class HasMemory(Protocol):
    """What is asked of a `jax.Device`: None, or no such entry, where its backend keeps no count."""

    def memory_stats(self) -> dict[str, Any] | None: ...


def high_water(devices: Iterable[HasMemory]) -> dict[str, int]:
    """Returns bytes by metric name, each the highest since its process began:

    - `memory/host_peak_bytes`: resident memory of this process,
    - `memory/workers_peak_bytes`: the sum over the peaks of its live worker processes; left out without any, and where there is no /proc,
    - `memory/device_peak_bytes`: of the fullest of `devices`, and `memory/device_limit_bytes`, what a program may use of it; left out
      where the backend keeps no count (CPU).
    """
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"memory/host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    workers = [peak for child in multiprocessing.active_children() if child.pid and (peak := process_peak(child.pid))]
    if workers:
        found["memory/workers_peak_bytes"] = sum(workers)
    counted = [stats for device in devices if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats]
    if counted:
        fullest = max(counted, key=lambda stats: stats["peak_bytes_in_use"])
        found["memory/device_peak_bytes"] = int(fullest["peak_bytes_in_use"])
        if "bytes_limit" in fullest:
            found["memory/device_limit_bytes"] = int(fullest["bytes_limit"])
    return found


def process_peak(pid: int) -> int:
    """Returns the highest resident memory of process `pid` in bytes; 0 where it is gone or the system has no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
