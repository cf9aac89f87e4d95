"""What follows from the speed of an interval: useful tokens a second, MFU, and beside them the most memory that was in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax

from ofa_jax.config.hardware import hardware_of
from ofa_jax.config.schema import AnyRun, VQGANRunConfig
from ofa_jax.models.operations import step_operations
from ofa_jax.monitor import flops
from ofa_jax.monitor.memory import high_water
from ofa_jax.monitor.writers import Number
from ofa_jax.train.hooks import Hook


class WatchSpeed(Hook):
    """Logs `perf/useful_tokens_per_s` (source and target tokens without padding, of the global batch), `perf/flops_per_s`, `perf/mfu` and
    its components (`monitor/flops`), and `memory/...` of this host (`monitor/memory`).

    Operations of a VQGAN are not counted. Tokens come from the record's `data/tokens/...` (`train/watch`).
    """

    def __init__(
        self,
        config: AnyRun,
        *,
        devices: Sequence[jax.Device] | None = None,
        say: Callable[[str], None] = lambda line: print(line, flush=True),
    ):
        """devices: of all hosts, default all that JAX has. say: takes the line on how MFU is computed."""
        devices = jax.devices() if devices is None else devices
        self._operations = {} if isinstance(config, VQGANRunConfig) else step_operations(config)
        self._kind, self._num_chips, self._say = devices[0].device_kind, len(devices), say
        self._here = [device for device in devices if device.process_index == jax.process_index()]
        hardware = hardware_of(self._kind)
        self._peak = (hardware and hardware.bf16_flops) or None

    def start(self, step: int) -> None:
        del step
        if self._operations:
            self._say(flops.explain(self._operations, kind=self._kind, num_chips=self._num_chips, peak_flops=self._peak))

    def derive(self, record: Mapping[str, Number]) -> Mapping[str, Number]:
        found: dict[str, Number] = dict(high_water(self._here))
        step_s = float(record.get("time/step_ms", 0.0)) / 1e3
        if step_s <= 0:  # the first step alone, which compiled
            return found
        tokens = sum(float(value) for name, value in record.items() if name.startswith("data/tokens/"))
        if tokens:
            found["perf/useful_tokens_per_s"] = tokens / step_s
        if self._operations:
            peak = None if self._peak is None else self._peak * self._num_chips
            found |= flops.rates(self._operations, step_s=step_s, peak_flops=peak)
        return found
