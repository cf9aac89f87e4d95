"""A run that is killed outright at a random step, by the real command line: the same command goes on as if nothing had happened."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from processes import TIMEOUT_S, command, learned, lines, run, started

STEPS, EVERY = 14, 4
FLAG = f"--config.checkpoint.every_steps={EVERY}"


def kill_at(name: str, folder: Path, step: int) -> None:
    """Starts the run and sends SIGKILL as soon as the batch of `step` was taken."""
    batches, log = folder / "runs" / name / "batches_0.jsonl", folder / f"{name}.log"
    with started(command(name, FLAG, steps=STEPS), folder, log) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while len(lines(batches)) < step:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_with_the_same_batches_and_numbers(tmp_path):
    run(command("whole", FLAG, steps=STEPS), tmp_path)
    # Behind the second save, which waits for the first: before it, a slow disk may have none that is whole.
    step = random.SystemRandom().randrange(2 * EVERY + 1, STEPS - 1)
    print(f"killed when batch {step} was taken")  # shown when the test fails
    kill_at("killed", tmp_path, step)
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    before = lines(killed / "batches_0.jsonl")

    said = run(command("killed", FLAG, steps=STEPS), tmp_path)

    resumed = int(said.split("going on from step ")[1].split()[0])
    assert 0 < resumed <= len(before) and resumed % EVERY == 0, said
    assert before == lines(whole / "batches_0.jsonl")[: len(before)]
    assert (killed / "batches_0.jsonl").read_bytes() == (whole / "batches_0.jsonl").read_bytes()
    assert [line["data_step"] for line in lines(killed / "batches_0.jsonl")] == list(range(STEPS))
    # Every step is logged once, and the model's numbers are those of the whole run to the last bit: only clocks differ.
    assert learned(killed) == learned(whole)
