"""The fault suite itself, short: a kill in each phase, judged, and gone on with after it was killed in its turn."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_suite import flags
from lives import PHASES
from processes import ROOT, TIMEOUT_S, environment, lines

SUITE = [sys.executable, str(ROOT / "tests" / "e2e" / "fault_suite.py"), f"--config={ROOT}/tests/e2e/fault_run.py:steps=12"]


def test_a_wrong_kind_of_run_is_one_sentence(capsys):
    with pytest.raises(SystemExit):
        flags(["--config=c.py", "--workdir=w", "--runs=one,three"])
    assert "--runs: found three, expected some of one, changing, two" in capsys.readouterr().err


@pytest.mark.full
def test_a_kill_in_each_phase_loses_nothing(tmp_path: Path):
    """One process of one device; the suite is killed after its second life, and the same command goes on."""
    arguments = [*SUITE, f"--workdir={tmp_path}/faults", "--runs=one", "--kills=6", "--steps=12", "--save_every=3", "--evaluate_every=6"]
    arguments.append(f"--out={tmp_path}/faults.json")
    journal = tmp_path / "faults" / "journal.jsonl"
    with (tmp_path / "log.txt").open("w") as log:
        suite = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + TIMEOUT_S
        while sum(line["event"] == "begin" for line in lines(journal)) < 3:
            assert suite.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        suite.kill()
        assert suite.wait() == -signal.SIGKILL
    done = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=3 * TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert found["kills"] >= 6 and found["faults"] == []
    hit = {phase for phase, of in found["by_phase"].items() if sum(of.values())}
    assert len(hit) >= len(PHASES) - 1, "a kill may come behind the phase that it was aimed at"
    assert all(run["state"]["bitwise"] for run in found["runs"])
