"""A machine that is about to be taken away says so: the run saves and ends before it is gone."""

from __future__ import annotations

import time
from pathlib import Path

from processes import TIMEOUT_S, command, lines, started

from tests.monitor.metadata_server import metadata_server


def test_a_notice_of_preemption_saves_and_ends_the_run(tmp_path: Path):
    answers = {"preempted": "FALSE", "maintenance-event": "NONE"}
    log, workdir = tmp_path / "log.txt", tmp_path / "runs" / "noticed"
    arguments = command("noticed", "--config.checkpoint.every_steps=1000000", steps=1_000_000)
    with metadata_server(answers) as server, started(arguments, tmp_path, log, GCE_METADATA_HOST=server) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while len(lines(workdir / "metrics.jsonl")) < 1:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        answers["preempted"] = "TRUE"
        assert process.wait(60) == 75, log.read_text()
    assert "notice of maintenance: preempted TRUE" in log.read_text()
    last = lines(workdir / "lives_0.jsonl")[-1]
    assert last["reason"] == "preempted" and (workdir / "checkpoints" / str(last["step"])).is_dir()
