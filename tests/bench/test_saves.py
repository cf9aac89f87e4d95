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
    save = r"still for \d\.\d\d s, on disk after \d+\.\d s, (\d+) step\(s\) begun meanwhile, \d+\.\d\d s a step"
    said = rf"save: quickstart_debug, 0\.\d\d GB on cpu, \d+\.\d\d s a step without a save: {save}; {save}$"
    found = re.match(said, done.stdout.strip())
    assert found and min(map(int, found.groups())) >= 1, done.stdout
    assert not any(tmp_path.iterdir())
