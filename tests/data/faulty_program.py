"""A program whose data workers meet faults, run by test_workers: `python -m tests.data.faulty_program SCENARIO`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import BlockConfig, SourceConfig
from ofa_jax.data.batch import Row
from ofa_jax.data.pipeline import BatchIterator, Pipeline
from ofa_jax.data.records import Record
from tests.data.memory_records import build_row, data_config, open_memory


class FaultyBuild:
    """Builds rows as `build_row`, but meets its fault when the row of text 7 is asked for; `slow` rows all take 0.05 s."""

    def __init__(self, fault: str):
        self.fault = fault

    def __call__(self, block: BlockConfig, source: SourceConfig, record: Record, draw: object) -> Row:
        if record.record_id == "prose-7":
            if self.fault == "bug":
                raise KeyError("a bug")
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "exit":
                os._exit(0)
        if self.fault == "slow":
            time.sleep(0.05)
        return build_row(block, source, record, draw)


def begin(fault: str, *, num_workers: int = 1) -> BatchIterator:
    """An iterator that has given its first batch."""
    batches = Pipeline(data_config(num_workers=num_workers), 1, FaultyBuild(fault), open_memory).iterate(0)
    next(batches)
    return batches


def faults() -> None:
    """Prints the consumer's error of each fault."""
    for fault in ("killed", "exit", "bug"):
        batches = begin(fault)
        try:
            for _ in range(6):
                next(batches)
        except (UserError, RuntimeError) as error:
            print(f"{fault}: {type(error).__name__}: {error}")
        if multiprocessing.active_children():
            print("a worker is left")


def signals() -> None:
    """Signals reach whole groups (Ctrl-C, schedulers); they are this process's to handle. Then a close in the middle of a batch."""
    batches = begin("slow", num_workers=2)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    next(batches)
    next(batches)
    started = time.monotonic()
    batches.close()
    if time.monotonic() - started > 4:
        print("closing was slow")
    if multiprocessing.active_children():
        print("a worker is left")


def orphans() -> None:
    """Prints the worker's process id and dies."""
    begin("none")
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def unclosed_threads() -> None:
    begin("none", num_workers=0)


def unclosed_workers() -> None:
    """Ends by an exception of its own while a worker is busy."""
    begin("slow")
    raise ValueError("the loop failed")


if __name__ == "__main__":
    {run.__name__: run for run in (faults, signals, orphans, unclosed_threads, unclosed_workers)}[sys.argv[1]]()
