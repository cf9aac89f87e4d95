"""What the first host of a run reports: the hooks that write, print and compare, in the order of their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ofa_jax.config.render import leaves
from ofa_jax.config.schema import AnyRun
from ofa_jax.monitor.reference import Band, read_band
from ofa_jax.monitor.writers import Number, WeightsAndBiases
from ofa_jax.train.hooks import Hook, ProgressLine, WriteMetrics
from ofa_jax.train.speed import WatchSpeed
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
