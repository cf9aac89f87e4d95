"""Runs the data pipeline of a config without its model, for minutes or hours, and says whether it keeps its pace and its memory.

A run on a pod waits for the slowest batch of its slowest host, and a leak of a megabyte a minute ends it after a day. Both show here, on
one machine and on the very shards and lines of the mixture, before a chip is rented.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from ofa_jax.config.schema import AnyRun
from ofa_jax.data.pipeline import Pipeline
from ofa_jax.data.quarantine import Quarantine
from ofa_jax.tasks.training_data import training_pipeline

SETTLE_SHARE = 0.1  # of the time, during which buffers fill and allocators find their size; what is measured comes after
_SAMPLE_S = 2.0  # between two looks at the memory
_SAY_EVERY_S = 30.0


@dataclasses.dataclass(frozen=True)
class SoakOptions:
    """How long, at which pace, and what is too much."""

    seconds: float
    step_s: float = 0.0  # what a step of the model would take; 0: batches are taken as fast as they come
    start: int = 0  # data_step of the first batch
    max_wait_s: float = 1.0  # for one batch, once settled
    max_growth: float = 0.05  # highest over lowest resident memory of a process, less 1, once settled


@dataclasses.dataclass(frozen=True)
class Memory:
    """Resident memory of one process, in bytes, once settled."""

    process: str
    lowest: int
    highest: int

    @property
    def growth(self) -> float:
        """By how much of the lowest the highest is above it."""
        return self.highest / self.lowest - 1


@dataclasses.dataclass(frozen=True)
class Soak:
    """What was seen. Waits are seconds that the consumer waited for a batch, once settled."""

    seconds: float
    batches: int
    rows: int
    rejected: int  # rows whose record could not be used
    median_wait_s: float
    longest_wait_s: float
    longest_wait_step: int  # data_step of the batch that was waited for longest
    memory: tuple[Memory, ...]  # this process first, then the workers
    faults: tuple[str, ...]  # what was above the limits, one sentence each
    ended: str  # "time" or the signal that ended it early

    def to_json(self) -> str:
        """Returns everything as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    def lines(self) -> list[str]:
        """Returns the report in words."""
        megabytes = ", ".join(f"{m.process} {m.lowest / 1e6:.0f} to {m.highest / 1e6:.0f} MB ({m.growth:+.1%})" for m in self.memory)
        return [
            f"soak: {self.seconds / 60:.1f} minutes, {self.batches:,} batches, {self.rows:,} rows, {self.rows / self.seconds:.0f} rows/s",
            f"waits for a batch: median {self.median_wait_s * 1e3:.1f} ms, longest {self.longest_wait_s * 1e3:.1f} ms (data_step "
            f"{self.longest_wait_step})",
            f"memory: {megabytes}",
            f"rejected: {self.rejected:,} of {self.rows:,} rows",
            *(f"too much: {fault}" for fault in self.faults),
        ]


def soak(
    config: AnyRun,
    options: SoakOptions,
    *,
    rejects: Path,
    stop: Callable[[], str] = lambda: "",
    progress: Callable[[str], None] = print,
) -> Soak:
    """Takes batches of the config's pipeline for `options.seconds` and returns what was seen; workers are gone when it returns.

    Rejected records are listed in the file `rejects`, as a training run lists them. `stop` is asked after each batch and ends the soak by
    naming a signal. Raises as the pipeline does: DataError for records that cannot be read, and for too many rejects.
    """
    quarantine = Quarantine(rejects, max_fraction=config.data.max_reject_fraction, grace=config.data.reject_grace)
    pipeline, _ = training_pipeline(config, quarantine=quarantine)
    return _soak(pipeline, quarantine, options, stop, progress)


def _soak(
    pipeline: Pipeline, quarantine: Quarantine, options: SoakOptions, stop: Callable[[], str], progress: Callable[[str], None]
) -> Soak:
    waits: list[tuple[float, int]] = []
    memory: dict[str, list[int]] = {}
    batches, ended = 0, ""
    began = said = sampled = time.monotonic()
    with pipeline.iterate(options.start) as making:
        while not ended:
            asked = time.monotonic()
            batch = next(making)
            now = time.monotonic()
            batches += 1
            settled = now - began > SETTLE_SHARE * options.seconds
            if settled:
                waits.append((now - asked, batch.data_step))
            del batch  # a model holds one batch at a time, too
            if settled and now - sampled > _SAMPLE_S:
                sampled = now
                processes = [("main", os.getpid())]
                processes += [(child.name, child.pid) for child in multiprocessing.active_children() if child.pid]
                for name, process in sorted(processes, key=lambda named: (named[0] != "main", named[0])):
                    memory.setdefault(name, []).append(_resident(process))
            if now - said > _SAY_EVERY_S:
                said = now
                rate = batches * pipeline.num_rows / (now - began)
                longest = f", longest wait {max(waits)[0] * 1e3:.0f} ms" if waits else ""
                left = options.seconds - (now - began)
                progress(f"soak: {batches:,} batches, {rate:.0f} rows/s, {quarantine.rejected:,} rejected{longest}; {left:.0f} s left")
            if options.step_s:
                time.sleep(options.step_s)
            ended = stop() or ("time" if now - began >= options.seconds else "")
        seconds = time.monotonic() - began
    waits = waits or [(0.0, options.start)]
    used = tuple(Memory(name, min(found), max(found)) for name, found in memory.items())
    longest_s, longest_step = max(waits)
    faults = (
        [f"a batch was waited for {longest_s:.2f} s, expected at most {options.max_wait_s:g} s"] if longest_s > options.max_wait_s else []
    )
    faults += [
        f"memory of {m.process} grew by {m.growth:.1%}, expected at most {options.max_growth:.0%}"
        for m in used
        if m.growth > options.max_growth
    ]
    return Soak(
        seconds=seconds,
        batches=batches,
        rows=quarantine.rows,
        rejected=quarantine.rejected,
        median_wait_s=statistics.median(wait for wait, _ in waits),
        longest_wait_s=longest_s,
        longest_wait_step=longest_step,
        memory=used,
        faults=tuple(faults),
        ended=ended,
    )


def _resident(process: int) -> int:
    """Resident memory of a process in bytes (/proc/<pid>/statm counts pages)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
