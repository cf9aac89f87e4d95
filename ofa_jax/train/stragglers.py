"""Which host the others wait for: all hosts make a step together, so the one whose batch comes last sets the pace of all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ofa_jax.monitor.writers import Number
from ofa_jax.parallel import hosts
from ofa_jax.train.hooks import Hook

LATE_SHARE = 0.1  # of the time of a step: what a host's own wait for data may be above the median of the hosts


def find_straggler(waits_ms: Sequence[float], *, step_ms: float) -> str:
    """Returns a sentence that names the host that holds up the others, "" where none does.

    waits_ms: of every host, how long a step waited for its batch. step_ms: how long a step took, the wait included.
    """
    last = int(np.argmax(waits_ms))
    usual = statistics.median(waits_ms)
    if waits_ms[last] - usual <= LATE_SHARE * step_ms:
        return ""
    return (
        f"straggler: host {last} waits {waits_ms[last]:.0f} ms a step for its batches, the median of {len(waits_ms)} hosts is "
        f"{usual:.0f} ms of a step of {step_ms:.0f} ms; look at its disk, its network, its CPU, and at data.num_workers"
    )


class Stragglers(Hook):
    """With several hosts: logs `hosts/data_wait_ms/most` and `.../median`, and `hosts/last`, the index of the host that waited most for its
    data, each interval, and says a straggler. The sum of an interval waits for the slowest host, as every step does."""

    def __init__(self, *, say: Callable[[str], None]):
        """say: is given the sentence of an interval with a straggler, on every host."""
        self._say = say
        self._in_data_since = 0.0
        self._waited_s, self._steps = 0.0, 0
        self._began = time.monotonic()

    def phase(self, step: int, name: str) -> None:
        now = time.monotonic()
        if self._in_data_since:
            self._waited_s += now - self._in_data_since
            self._steps += 1
        self._in_data_since = now if name == "data" else 0.0

    def numbers(self, data_step: int) -> Mapping[str, Number]:
        now = time.monotonic()
        steps = max(self._steps, 1)
        mine = np.array([self._waited_s / steps, (now - self._began) / steps]) * 1e3
        self._waited_s, self._steps, self._began = 0.0, 0, now
        all_waits, all_steps = np.stack([np.frombuffer(found) for found in hosts.gather(mine.tobytes())]).T
        if said := find_straggler(all_waits.tolist(), step_ms=float(np.median(all_steps))):
            self._say(said)
        return {
            "hosts/data_wait_ms/most": float(all_waits.max()),
            "hosts/data_wait_ms/median": float(np.median(all_waits)),
            "hosts/last": int(np.argmax(all_waits)),
        }
