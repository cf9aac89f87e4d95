"""The hooks that every run has: those of each host, and what the first one writes, prints and compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ofa_jax.config.render import leaves
from ofa_jax.config.schema import AnyRun
from ofa_jax.monitor.exits import Life
from ofa_jax.monitor.heartbeat import Heartbeat
from ofa_jax.monitor.maintenance import MaintenanceWatch, metadata_server
from ofa_jax.monitor.reference import Band, read_band
from ofa_jax.monitor.writers import Number, WeightsAndBiases
from ofa_jax.parallel import hosts
from ofa_jax.train.hooks import FollowLife, Hook, ProgressLine, TimeByCause, WriteMetrics
from ofa_jax.train.speed import WatchSpeed
from ofa_jax.train.stragglers import Stragglers
from ofa_jax.train.tracing import TraceOnDemand
from ofa_jax.train.watch import SourceUsage, WatchData


class CompareToReference(Hook):
    """Logs how far the losses are from a band: `reference/<metric>`, of an interval and of held-out batches."""

    def __init__(self, band: Band):
        self._band = band

    def derive(self, record: Mapping[str, Number]) -> Mapping[str, Number]:
        return self._band.compare(record)


class WriteElsewhere(Hook):
    """Gives every record to a writer of another program's, beside the run's own files."""

    def __init__(self, writer: WeightsAndBiases):
        self._writer = writer

    def log(self, record: Mapping[str, Number]) -> None:
        self._writer.write(record)

    def close(self) -> None:
        self._writer.close()


class FollowNotices(Hook):
    """Hears Google's notices that this host's machine will end, where there are any (`monitor/maintenance`)."""

    def __init__(self) -> None:
        self._watch: MaintenanceWatch | None = None

    def start(self, step: int) -> None:
        self._watch = MaintenanceWatch(metadata_server())

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()


def host_hooks(config: AnyRun, workdir: Path, life: Life, heartbeat: Heartbeat) -> list[Hook]:
    """Returns the hooks of every host: traces on demand, what the run is at, notices of maintenance, time by cause, and with several hosts
    which of them is late."""
    tracing = TraceOnDemand(workdir, at_step=config.monitor.trace_step)
    found = [tracing, FollowLife(life, heartbeat), FollowNotices(), TimeByCause()]
    return [*found, Stragglers(say=_say_first)] if hosts.count() > 1 else found


def _say_first(sentence: str) -> None:
    if hosts.is_first():
        print(sentence, flush=True)


def reporting_hooks(config: AnyRun, workdir: Path, usage: SourceUsage, *, task_names: Sequence[str], num_hosts: int) -> list[Hook]:
    """Returns the hooks of the first host of `num_hosts`. Raises ConfigError where `config.monitor` asks for what is not there."""
    hooks: list[Hook] = [WriteMetrics(workdir), ProgressLine(steps=config.steps)]
    hooks += [WatchData(config, usage, task_names=task_names, num_hosts=num_hosts), WatchSpeed(config)]
    if config.monitor.reference:
        hooks.append(CompareToReference(read_band(config.monitor.reference)))
    if config.monitor.wandb:
        about = dict(leaves(config))
        hooks.append(WriteElsewhere(WeightsAndBiases(config.monitor.wandb, run=config.name, folder=workdir, about=about)))
    return hooks
