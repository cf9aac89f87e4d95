"""Runs one pass over its units with Apache Beam: on the cores of this machine, or on a cluster by the runner's name.

An element is a shard, never a record, and what a unit makes is a file: Beam only carries names, so that its own memory and shuffles
do not matter, and a unit whose file is there is not run again, whoever made it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import DataError, UserError
from ofa_jax.data.storing import names_in
from ofa_jax.prepare.layouts.base import Progress
from ofa_jax.prepare.passes import worker

TRIES = 4  # for input and output errors
_WAIT_S = 1.0  # before the second try; doubles with every further one
_SAY_EVERY_S = 10.0
_MOST_TOLD = 5


@dataclasses.dataclass(frozen=True)
class RunnerOptions:
    """Where passes run. None of it changes a byte of the result."""

    runner: str = "direct"  # Beam's: direct, dataflow, flink, spark, or the name of a class
    workers: int = 1  # processes of the direct runner
    beam_args: tuple[str, ...] = ()  # further options of Beam, such as --project=P --region=R --temp_location=gs://...

    @property
    def shares_no_disk(self) -> bool:
        """Whether workers see nothing of this machine's disks. (Those of Flink and Spark may share a mounted one.)"""
        return _RUNNERS.get(self.runner, self.runner) == "DataflowRunner"


@dataclasses.dataclass(frozen=True)
class Unit:
    """One unit of a pass: its name for messages, what the work function gets, and the file of the pass that says that it is done."""

    name: str
    value: Any
    file: str


def run_pass(
    name: str,
    units: Sequence[Unit],
    work: Callable[[Any], None],
    *,
    folder: Any,
    options: RunnerOptions,
    progress: Progress,
) -> int:
    """Runs `work(unit.value)` for every unit whose file is not in `folder` and returns how many there were. The folder is listed, never
    asked for one file: a store would be asked as often as there are units.

    `work` and the values have to pickle, as workers are processes. OSErrors are tried again `TRIES` times, and what a worker gave up is
    done once more here. Errors of several units are told together: raises `DataError` after all others are done, so that nothing of them
    is lost.
    """
    missing = _undone(units, folder)
    if not missing:
        progress(f"{name}: all {len(units):,} are there")
        return 0
    if len(missing) < len(units):
        progress(f"{name}: going on, {len(units) - len(missing):,} of {len(units):,} are there")
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(name, missing, folder, stop, progress), daemon=True)
    watcher.start()
    began = time.monotonic()
    try:
        _run_beam([(unit.name, unit.value) for unit in missing], _Guarded(work), options)
        said, untried = _try_again(name, missing, work, folder=folder, options=options, progress=progress)
    finally:
        stop.set()
        watcher.join()
    if said:
        more = f"; {untried:,} more" if untried else ""
        raise DataError(f"{name}: {len(said) + untried:,} of {len(units):,} failed; " + "; ".join(said) + more)
    seconds = time.monotonic() - began
    progress(f"{name}: {len(missing):,} in {seconds:.1f} s")
    return len(missing)


def _try_again(
    name: str,
    units: Sequence[Unit],
    work: Callable[[Any], None],
    *,
    folder: Any,
    options: RunnerOptions,
    progress: Progress,
) -> tuple[list[str], int]:
    """Does units that workers left undone once more, a few at a time, here: workers elsewhere have no way to tell why.

    Returns (the sentences of those that fail again, how many others are undone). Where none of a few fails again, the fault is over, and
    workers get the others: one process must not do the work of all.
    """
    undone = _undone(units, folder)
    while undone:
        tried = undone[:_MOST_TOLD]
        said = [f"{unit.name}: {sentence}" for unit in tried if (sentence := _attempt(name, unit, work, progress))]
        undone = undone[len(tried) :]
        if said or not undone:
            return said, len(undone)
        progress(f"{name}: {len(undone):,} that failed go to workers once more")
        _run_beam([(unit.name, unit.value) for unit in undone], _Guarded(work), options)
        undone = _undone(undone, folder)
    return [], 0


def _undone(units: Sequence[Unit], folder: Any) -> list[Unit]:
    there = names_in(folder)
    return [unit for unit in units if unit.file not in there]


def _attempt(name: str, unit: Unit, work: Callable[[Any], None], progress: Progress) -> str:
    """Does a unit here; returns the sentence of its error, "" when it is done."""
    try:
        work(unit.value)
    except (UserError, OSError) as error:
        return str(error)
    progress(f"{name}: {unit.name} failed in a worker, done at the second try")
    return ""


class _Guarded:
    """Does a unit's work. Expected errors leave the unit undone instead of ending the whole pass."""

    def __init__(self, work: Callable[[Any], None]):
        self._work = work

    def __call__(self, unit: tuple[str, Any]) -> str:
        for tried in range(TRIES):
            try:
                self._work(unit[1])
            except UserError:
                break
            except OSError:
                if tried + 1 < TRIES:
                    time.sleep(_WAIT_S * 2**tried)
            else:
                break
        return unit[0]


def _run_beam(units: list[tuple[str, Any]], work: Callable[[tuple[str, Any]], str], options: RunnerOptions) -> None:
    """Runs the graph to its end. Raises `DataError` for a runner that is not there, lacks options, or was asked to run nothing."""
    # Beam warns of packages for stores that nobody asked for, and of what an environment of our own replaces.
    logging.disable(logging.WARNING)
    try:
        import apache_beam as beam
        import grpc
        from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, TestOptions

        if options.runner == "direct":
            runner: Any = _local_runner(options.workers)
            args = [f"--direct_num_workers={options.workers}"]
        else:
            # What workers call lies in modules of ours, which they import; Dataflow would send the launcher's variables too.
            runner, args = None, [f"--runner={_RUNNERS.get(options.runner, options.runner)}", "--no_save_main_session"]
        beam_options = PipelineOptions([*args, *options.beam_args])
        try:
            pipeline = beam.Pipeline(runner, options=beam_options)
        except ValueError as error:
            raise DataError(
                f"--runner={options.runner}: found what Beam does not take, expected a runner and its options: {error}"
            ) from error
        with pipeline:
            _ = pipeline | "units" >> beam.Create(units) | "spread" >> beam.Reshuffle() | "work" >> beam.Map(work)
    except ImportError as error:
        raise DataError(f"--runner={options.runner}: {error}; expected the packages of requirements-prepare.txt{_GCP}") from error
    except grpc.FutureTimeoutError as error:
        raise DataError(
            f"--runner={options.runner}: found no job service that answers, expected one at {' '.join(options.beam_args) or 'an address'}; "
            f"give it by --beam=--job_endpoint=HOST:PORT"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    for asked, view in (("dry_run", TestOptions), ("template_location", GoogleCloudOptions)):
        if getattr(beam_options.view_as(view), asked):
            raise DataError(
                f"--runner={options.runner}: it took the graph of {len(units):,} units and ran nothing, as --{asked} asks; go on without it"
            )


def _local_runner(workers: int) -> Any:
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    if workers == 1:
        return fn_runner.FnApiRunner()
    # Worker processes begin in another folder's Python: tell them where this package lies.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH"))))
    command = f"{shlex.quote(sys.executable)} -m {worker.__name__}"
    return fn_runner.FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


_GCP = ", and of apache-beam[gcp] for Dataflow"
_RUNNERS = {"dataflow": "DataflowRunner", "flink": "FlinkRunner", "spark": "SparkRunner"}


def _watch(name: str, units: Sequence[Unit], folder: Any, stop: threading.Event, progress: Progress) -> None:
    """Says how many units are done and how long the others will take."""
    began = time.monotonic()
    while not stop.wait(_SAY_EVERY_S):
        try:
            done = len(units) - len(_undone(units, folder))
        except (UserError, OSError) as error:  # the pass itself ends with it, if it lasts
            progress(f"{name}: cannot say how far it is: {error}")
            continue
        took = time.monotonic() - began
        left = f", about {took / done * (len(units) - done):.0f} s left" if done else ""
        progress(f"{name}: {done:,} of {len(units):,} done{left}")
