"""The command that times saves, on a small model: it saves, and steps are made meanwhile."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.full
def test_saves_are_timed_beside_steps(tmp_path: Path):
    command = [sys.executable, str(ROOT / "launch" / "bench.py"), "save", f"--config={ROOT}/tests/e2e/small_run.py", "--rows=8"]
    done = subprocess.run([*command, "--repeats=2", f"--folder={tmp_path}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = r"save: quickstart_debug, 0\.\d\d GB on cpu: the loop stood still for \d\.\d\d, \d\.\d\d s; meanwhile (\d+) steps in .* s a step"
    found = re.match(said, done.stdout)
    assert found and int(found[1]) >= 1, done.stdout
    assert not any(tmp_path.iterdir())
