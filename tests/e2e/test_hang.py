"""A host that stands still longer than the deadline ends the run on every host, by name."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from pathlib import Path

import pytest
from processes import TIMEOUT_S, command, lines, started


def job(folder: Path, arguments: list[str], stack: contextlib.ExitStack, indices: tuple[int, ...]):
    """Starts the processes `indices` of a job of two and returns them with their logs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = []
    for index in indices:
        log = folder / f"log_{index}.txt"
        names = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
        found.append((stack.enter_context(started(arguments, folder, log, **names)), log))
    return found


@pytest.mark.full
def test_a_stopped_host_ends_the_run_and_is_named(tmp_path: Path):
    with contextlib.ExitStack() as stack:
        arguments = command("hang", "--config.hang_s=15", "--config.checkpoint.every_steps=1000000", steps=1_000_000)
        (first, first_log), (second, second_log) = job(tmp_path, arguments, stack, (0, 1))
        workdir = tmp_path / "runs" / "hang"
        deadline = time.monotonic() + TIMEOUT_S
        while len(lines(workdir / "metrics.jsonl")) < 3:
            assert time.monotonic() < deadline and first.poll() is None, first_log.read_text()
            time.sleep(0.2)
        second.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert first.wait(60) == 77, first_log.read_text()
        assert 10 < time.monotonic() - began < 40
        second.send_signal(signal.SIGCONT)
        # Its own watch ends it, unless JAX does so first, which finds its coordinator gone.
        assert second.wait(60) in (77, -signal.SIGABRT), second_log.read_text()
    said = first_log.read_text()
    assert "ended: hang (77) at step " in said and f"host 1 ({socket.gethostname()}) is last: step " in said
    assert "train/loop.py" in (workdir / "hang_0.txt").read_text()
    assert [(line["event"], line.get("reason")) for line in lines(workdir / "lives_0.jsonl")] == [("start", None), ("end", "hang")]
