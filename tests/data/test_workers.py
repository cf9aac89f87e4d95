"""Worker processes: clean ends without a word on stderr, faults that reach the consumer, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.left_behind import orphans, shared_memory

ROOT = Path(__file__).resolve().parents[2]


def run(scenario: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.data.faulty_program", scenario]
    before = shared_memory()
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert not orphans(before)
    return finished


@pytest.mark.parametrize("scenario", ["signals", "unclosed_threads"])
def test_a_clean_end_says_nothing(scenario: str):
    finished = run(scenario)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_faults_of_workers_reach_the_consumer():
    finished = run("faults")
    assert (finished.returncode, finished.stderr) == (0, "")
    killed, left, bug = finished.stdout.split("\n", 2)
    assert killed.startswith("killed: DataError: data-worker-0 of 1 died") and "found exit status -9, expected it to live" in killed
    assert left.startswith("exit: DataError: data-worker-0 of 1 died") and "found exit status 0, expected it to live" in left
    assert bug.startswith("bug: RuntimeError: batch ") and "KeyError: 'a bug'" in bug and "faulty_program.py" in bug
    assert "a worker is left" not in bug


def test_an_exception_of_the_loop_stays_the_only_one():
    finished = run("unclosed_workers")
    assert finished.returncode == 1 and finished.stderr.count("Traceback") == 1
    assert finished.stderr.endswith("ValueError: the loop failed\n")


def test_workers_do_not_outlive_a_killed_program():
    finished = run("orphans")
    assert (finished.returncode, finished.stderr) == (-9, "")
    worker = int(finished.stdout)
    deadline = time.monotonic() + 10
    while is_running(worker):
        assert time.monotonic() < deadline, f"worker {worker} is still there"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """False for a process that is gone or has ended (and waits for a parent that collects it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
