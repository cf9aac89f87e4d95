"""The training loop's own figures, of the real command on real files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.full
def test_the_loop_tells_its_waits_and_useful_tokens(tmp_path: Path):
    command = [sys.executable, str(ROOT / "launch" / "bench.py"), "loop", f"--config={ROOT}/tests/e2e/small_run.py", "--steps=20"]
    done = subprocess.run([*command, f"--json={tmp_path}/found.json"], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    first, wait, useful, *_ = done.stdout.splitlines()
    assert "20 steps on its own data" in first and "waiting for a batch: " in wait and "are no padding" in useful
