"""How long a run takes to its first step, measured on the real command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "launch" / "bench.py"), *flags], capture_output=True, text=True, timeout=900)


@pytest.mark.full
def test_a_start_is_told_in_parts_without_and_with_compiled_programs():
    done = bench("start-up", f"--config={ROOT}/configs/vqgan_scenes.py:debug")
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    firsts = {line.split(":")[0]: float(line.split()[-2]) for line in told if line.startswith("start-up, ")}
    assert list(firsts) == ["start-up, nothing compiled", "start-up, programs in the cache"]
    parts = [float(line.split()[-2]) for line in told if line.startswith("  ")]
    assert len(parts) == 10 and min(parts) >= 0
    for number, first in enumerate(firsts.values()):
        assert abs(sum(parts[5 * number : 5 * number + 4]) - first) < 0.05


def test_a_config_that_is_not_there_is_one_sentence():
    done = bench("start-up", "--config=configs/nothing.py")
    assert done.returncode == 2 and "--config" in done.stderr and "Traceback" not in done.stderr
