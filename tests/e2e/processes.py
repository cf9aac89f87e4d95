"""Starting `launch/train.py` as a person does: real processes, their output kept, all of them ended with the test."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300


def command(name: str, *flags: str, steps: int) -> list[str]:
    """The command line of a small run (small_run.py) under a name of its own."""
    config = f"--config={ROOT}/tests/e2e/small_run.py:steps={steps}"
    return [sys.executable, str(ROOT / "launch" / "train.py"), config, f"--config.name={name}", *flags]


def environment(**more: str) -> dict[str, str]:
    """One CPU device a process, with the tests' own flags of XLA beside."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    return {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu", **more}


def run(arguments: list[str], folder: Path) -> str:
    """Runs one process to its end and returns what it printed; it must exit with 0."""
    done = subprocess.run(
        arguments, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextlib.contextmanager
def started(arguments: list[str], folder: Path, log: Path, **more: str) -> Iterator[subprocess.Popen]:
    """A running process that prints to `log`; it is killed at the end if it still runs."""
    with log.open("w") as out:
        process = subprocess.Popen(arguments, cwd=folder, env=environment(**more), stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_together(arguments: list[str], folder: Path, *, count: int, timeout_s: float = TIMEOUT_S) -> list[tuple[int, str]]:
    """Runs `count` processes of one job on 127.0.0.1 and returns (exit code, output) of each; a test that waits longer for one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    with contextlib.ExitStack() as stack:
        logs = [folder / f"process_{port}_{index}.log" for index in range(count)]
        processes = [
            stack.enter_context(started(arguments, folder, log, JAX_PROCESS_ID=str(index), **job)) for index, log in enumerate(logs)
        ]
        return [(process.wait(timeout_s), log.read_text()) for process, log in zip(processes, logs, strict=True)]


def lines(path: Path) -> list[dict]:
    """The whole lines of a JSON-lines file that may still be written."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def learned(folder: Path) -> list[dict]:
    """What a run's metrics say about the model and the data: all but clocks and speeds."""
    kept = ("step", "data_step", "loss/", "optimizer/", "data/")
    return [{k: v for k, v in line.items() if k.startswith(kept)} for line in lines(folder / "metrics.jsonl")]
