"""A sweep by the real command line, killed outright half-way: the same command goes on, and its table is the uninterrupted one's."""

from __future__ import annotations

import json
import signal
import sys
import time

import pytest
from processes import ROOT, TIMEOUT_S, command, run, run_together, started

from ofa_jax.prepare import fixtures

STEPS, EVERY = 8, 4
POINTS = 2 * (3 + 2 + 2)  # two checkpoints; three ways for VQA, two each for captioning and grounding
DECODE = ("--decode=greedy", "--decode=beam:beam,beam=3,max_len=8", "--decode=answers:score,answers=training,tasks=vqa")


def sweep(out) -> list[str]:
    config = f"--config={ROOT}/tests/e2e/small_run.py"
    flags = ["--config.name=swept", "--all-steps", f"--out={out}", *DECODE]
    return [sys.executable, str(ROOT / "launch" / "eval.py"), config, *flags]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run with two checkpoints, and the table of a sweep that nobody disturbed."""
    folder = tmp_path_factory.mktemp("sweep")
    run(command("swept", f"--config.checkpoint.every_steps={EVERY}", steps=STEPS), folder)
    said = run(sweep("whole"), folder)
    assert f"({POINTS} of {POINTS} points)" in said, said
    return folder


def points(folder, out) -> list:
    return sorted(path.name for path in (folder / out / "points").glob("*.json"))


@pytest.mark.full
def test_a_killed_sweep_goes_on(folder):
    log = folder / "killed.log"
    with started(sweep("killed"), folder, log) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while len(points(folder, "killed")) < POINTS // 2:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    before = points(folder, "killed")
    assert POINTS // 2 <= len(before) < POINTS and not (folder / "killed" / "sweep.json").exists()
    said = run(sweep("killed"), folder)
    assert said.count("points)") == POINTS - len(before), said
    for name in ("sweep.json", "sweep.csv", "sweep.md"):
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    assert points(folder, "killed") == points(folder, "whole")


@pytest.mark.full
def test_two_processes_count_every_example_once(folder):
    for code, said in run_together(sweep("shared"), folder, count=2):
        assert code == 0, said
    alone, shared = (json.loads((folder / out / "sweep.json").read_text()) for out in ("whole", "shared"))
    assert [{k: v for k, v in row.items() if k not in ("value", "low", "high")} for row in shared] == [
        {k: v for k, v in row.items() if k not in ("value", "low", "high")} for row in alone
    ]
    assert [row["value"] for row in shared] == pytest.approx([row["value"] for row in alone], abs=1e-6)


@pytest.mark.full
def test_a_run_is_watched(tmp_path):
    """The evaluation starts before the run has a checkpoint and ends with its last; the run keeps one checkpoint only."""
    watch = [*sweep("watched"), "--watch"]
    watch.remove("--all-steps")
    log = tmp_path / "watch.log"
    (tmp_path / "runs").mkdir()
    fixtures.write(tmp_path / "data" / "fixtures")  # data is there before a run and its evaluation begin
    with started(watch, tmp_path, log) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while "waiting for the first checkpoint" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        run(command("swept", f"--config.checkpoint.every_steps={EVERY}", "--config.checkpoint.keep=1", steps=STEPS), tmp_path)
        assert process.wait(TIMEOUT_S) == 0, log.read_text()
    steps = {row["checkpoint"] for row in json.loads((tmp_path / "watched" / "sweep.json").read_text())}
    assert f"swept@{STEPS}" in steps and steps <= {f"swept@{step}" for step in range(0, STEPS + 1, EVERY)}
