"""A run that is killed outright at a random step, by the real command line: the same command goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 30, 4
TIMEOUT_S = 300


def command(name: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "launch" / "train.py"), f"--config={ROOT}/configs/quickstart.py:debug,steps={STEPS}",
        f"--config.name={name}", f"--config.checkpoint.every_steps={EVERY}",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def run(name: str, folder: Path) -> str:
    done = subprocess.run(
        command(name), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def lines(path: Path) -> list[dict]:
    """The whole lines of a file that may still be written."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def kill_at(name: str, folder: Path, step: int) -> None:
    """Starts the run and sends SIGKILL as soon as the batch of `step` was taken."""
    batches = folder / "runs" / name / "batches_0.jsonl"
    log = folder / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(command(name), cwd=folder, env=environment(), stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while len(lines(batches)) < step:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_with_the_same_batches_and_numbers(tmp_path):
    run("whole", tmp_path)
    step = random.SystemRandom().randrange(EVERY + 1, STEPS - 1)
    print(f"killed when batch {step} was taken")  # shown when the test fails
    kill_at("killed", tmp_path, step)
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    before = lines(killed / "batches_0.jsonl")

    said = run("killed", tmp_path)

    resumed = int(said.split("going on from step ")[1].split()[0])
    assert 0 < resumed <= step and resumed % EVERY == 0, said
    assert before == lines(whole / "batches_0.jsonl")[: len(before)]
    assert (killed / "batches_0.jsonl").read_bytes() == (whole / "batches_0.jsonl").read_bytes()
    assert [line["data_step"] for line in lines(killed / "batches_0.jsonl")] == list(range(STEPS))
    # Every step is logged once, and the numbers of the model are those of the whole run to the last bit: only clocks differ.
    assert learned(killed) == learned(whole)


def learned(folder: Path) -> list[dict]:
    kept = ("step", "data_step", "loss/", "optimizer/", "data/")
    return [{k: v for k, v in line.items() if k.startswith(kept)} for line in lines(folder / "metrics.jsonl")]
