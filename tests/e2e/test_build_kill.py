"""A build that is killed at random moments and started again writes the bytes of one that was not."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "prepare" / "passes"))

from made_tars import write_tars  # noqa: E402

KILLS = 3


def start(source: Path, data_dir: Path) -> subprocess.Popen[str]:
    flags = [f"--source={source}", f"--data_dir={data_dir}", "--workers=2", "--shard_records=60"]
    command = [sys.executable, str(ROOT / "launch" / "prepare.py"), "build", "cc3m", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def files_of(folder: Path) -> dict[str, str]:
    """Returns the digest of every file that readers of the data set see, and of the lists of what was left out."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()}


def made(folder: Path) -> int:
    """Returns how many files of the passes are there."""
    return sum(1 for path in folder.glob("passes/*/*") if path.is_file() and not path.name.startswith("."))


@pytest.mark.full
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path):
    source = write_tars(tmp_path / "tars", tars=24, samples=60)
    whole = start(source, tmp_path / "whole")
    assert "cc3m: 1440 records" in whole.communicate(timeout=300)[0].replace(",", "")
    total = made(tmp_path / "whole" / "cc3m")

    draw, killed = random.Random(7), tmp_path / "killed"
    for number in range(KILLS):
        run = start(source, killed)
        # At any point of the passes: after some of the files that are still to come.
        wanted = total * (number + draw.random()) / KILLS
        while run.poll() is None and made(killed / "cc3m") < wanted:
            time.sleep(0.01)
        time.sleep(0.2 * draw.random())
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=60)
        assert run.returncode == -signal.SIGKILL, "the build ended before it was killed"
        assert not (killed / "cc3m" / "manifest.json").exists()
    said = start(source, killed).communicate(timeout=300)[0]
    assert "going on" in said or "are there" in said  # the last kill may come when all files of the passes are there
    assert files_of(killed / "cc3m") == files_of(tmp_path / "whole" / "cc3m")
    assert not list((killed / "cc3m").rglob("*.partial"))
