"""Whether the data comes as fast as the model will ask for it: the pipeline's measured rate against a predicted step.

A step is predicted from the model's operations, the published peak of the chips and an assumed share of it (MFU). Where the chip or the
operations are not known, nothing is made up: whoever knows the step's time gives it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from pathlib import Path

from ofa_jax.config.hardware import Hardware
from ofa_jax.config.schema import AnyRun, RunConfig
from ofa_jax.data.quarantine import Quarantine
from ofa_jax.doctor.report import Finding
from ofa_jax.models.operations import step_operations
from ofa_jax.tasks.training_data import training_pipeline

_SPARE = 1.2  # a pipeline that is so much faster than the model keeps its queue full
_SLICE_ROWS = 32  # of a batch that is made for measuring, at least


@dataclasses.dataclass(frozen=True)
class Step:
    """How long a training step will take."""

    seconds: float | None  # None: not known
    said: str  # where the number is from, or why there is none


@dataclasses.dataclass(frozen=True)
class Rate:
    """What the pipeline was seen to do on this host."""

    rows_s: float
    batches: int  # that were measured
    batch_rows: int
    first_s: float  # that the first batch took
    rejected: int


def predict_step(config: AnyRun, chip: Hardware | None, *, kind: str, num_devices: int, mfu: float, step_s: float) -> Step:
    """Returns the seconds of a step: `step_s` where it is not 0, else operations / (devices x peak x mfu).

    kind: what the device is called, for the sentence where `chip` is None. The peaks are those of bf16.
    """
    if step_s:
        return Step(step_s, "given by --step_s")
    if not isinstance(config, RunConfig):
        return Step(None, f"a step's time is not known (the operations of a {config.objective} are not counted); give --step_s")
    if config.objective != "ofa":
        return Step(None, f"a step's time is not known (the operations of objective={config.objective} are not counted); give --step_s")
    operations = sum(step_operations(config).values())
    if chip is None or not chip.bf16_flops:
        return Step(None, f"a step of {operations / 1e12:,.4g} TFLOP takes a time that is not known on {kind}; give --step_s or --chip")
    if config.precision != "bf16":
        return Step(None, f"a step's time is not known for precision={config.precision} (peaks are of bf16); give --step_s")
    peak = num_devices * chip.bf16_flops
    seconds = operations / (peak * mfu)
    return Step(
        seconds, f"{operations / 1e12:,.4g} TFLOP on {num_devices} x {chip.title} ({chip.bf16_flops / 1e12:.0f} TFLOP/s) at MFU {mfu:g}"
    )


def describe(config: AnyRun, step: Step) -> str:
    """Returns the step's time and the run's in words, or why they are not known."""
    if step.seconds is None:
        return step.said
    return f"a step of {_duration(step.seconds)} ({step.said}; {config.steps:,} steps: {_duration(config.steps * step.seconds)})"


def measure(config: AnyRun, *, host: int, num_hosts: int, seconds: float) -> Rate:
    """Returns the rate of the config's own pipeline with its worker processes, in `seconds` after its first batch.

    What is made is a slice of this host's rows, so that batches of thousands of rows are measured in seconds, too. Raises as the pipeline
    does: `UserError` for data that cannot be read or is mostly unusable.
    """
    slices = _slices(config, num_hosts)
    with tempfile.TemporaryDirectory(prefix="ofa_jax-") as folder:
        quarantine = Quarantine(
            Path(folder) / "rejects.jsonl", max_fraction=config.data.max_reject_fraction, grace=config.data.reject_grace
        )
        pipeline, _ = training_pipeline(config, host=host * slices, num_hosts=num_hosts * slices, quarantine=quarantine)
        began = time.monotonic()
        with pipeline.iterate(0) as making:
            next(making)
            first = time.monotonic()
            batches = 0
            while time.monotonic() - first < seconds:
                next(making)
                batches += 1
            took = time.monotonic() - first
        return Rate(batches * pipeline.num_rows / took, batches, pipeline.num_rows, first - began, quarantine.rejected)


def _slices(config: AnyRun, num_hosts: int) -> int:
    """Into how many parts a host's rows are cut for measuring: as many as leave `_SLICE_ROWS` rows of a batch, and divide all blocks."""
    rows = [block.rows // num_hosts for block in config.data.row_blocks]
    most = max(sum(rows) // _SLICE_ROWS, 1)
    return max(n for n in range(1, most + 1) if math.gcd(*rows) % n == 0)


def check_pace(
    config: AnyRun, rate: Rate, step: Step, *, num_hosts: int, here: bool, read_mb_s: float | None, step_bytes: float | None
) -> list[Finding]:
    """Returns whether this host's rows come fast enough for the step, with a fifth to spare.

    here: the run is to be on these machines; otherwise it is said how many like this one it takes. read_mb_s: rate of reading shards, and
    step_bytes: what a global batch reads of them; None where they are not known.
    """
    global_rows = sum(block.rows for block in config.data.row_blocks)
    cores, workers = len(os.sched_getaffinity(0)), config.data.num_workers
    made = f"{rate.rows_s:,.0f} rows/s here ({rate.batches} batches of {rate.batch_rows} rows, {workers} workers, {cores} cores)"
    numbers: dict[str, float | int | str | None] = {"rows_s": rate.rows_s, "first_batch_s": rate.first_s, "rejected": rate.rejected}
    numbers |= {"step_s": step.seconds, "global_rows": global_rows, "step_read_bytes": step_bytes}
    if not rate.batches:
        found = f"no second batch of {rate.batch_rows} rows came in time; the first took {rate.first_s:.1f} s"
        return [Finding("pace", "WARN", found, advice="give --seconds more, and see launch/soak.py", numbers=numbers)]
    crowded = []
    if workers > cores:
        advice = "take as many as there are cores, or fewer"
        crowded = [
            Finding("pace", "WARN", f"data.num_workers={workers} on {cores} cores", f"at most {cores}", advice, numbers, rate.rows_s)
        ]
    if step.seconds is None:
        return [*crowded, Finding("pace", "ok", f"{made}; {step.said}", numbers=numbers, measure=rate.rows_s)]
    needed = global_rows / step.seconds / (num_hosts if here else 1)
    numbers["needed_rows_s"] = needed
    model = describe(config, step)
    if not here:
        found = f"{made}; {model} asks for {needed:,.0f} rows/s: as many as {math.ceil(_SPARE * needed / rate.rows_s):,} such hosts make"
        return [*crowded, Finding("pace", "ok", found, numbers=numbers, measure=rate.rows_s)]
    found = f"{made}; {model} asks for {needed:,.0f} a host"
    if read_mb_s is not None and step_bytes is not None:
        wanted = step_bytes / 1e6 / step.seconds / num_hosts
        found += f", {wanted:.3g} MB/s of shards"
        if wanted > read_mb_s:
            advice = "take a faster disk or store, or a copy on each host"
            return [*crowded, Finding("pace", "FAIL", found, f"no more than the {read_mb_s:.0f} MB/s of data.dir", advice, numbers)]
    if rate.rows_s < needed:
        advice = "more data.num_workers on more cores, smaller stored pictures, or more hosts; --step_s gives a measured step"
        return [*crowded, Finding("pace", "FAIL", found, f"at least {needed:,.0f} rows/s", advice, numbers, rate.rows_s)]
    if rate.rows_s < _SPARE * needed:
        advice = "launch/soak.py watches it for longer"
        return [*crowded, Finding("pace", "WARN", found, f"{_SPARE * needed:,.0f} rows/s, a fifth to spare", advice, numbers, rate.rows_s)]
    return [*crowded, Finding("pace", "ok", found, numbers=numbers, measure=rate.rows_s)]


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0), ("s", 1.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"
