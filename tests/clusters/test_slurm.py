"""Batch scripts, in a cluster that is made of processes of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.pods import slurm as command
from ofa_jax.clusters import slurm
from ofa_jax.config.hardware import parse_topology
from tests.clusters.cluster_of_processes import JOB, write_slurm

ROOT = Path(__file__).resolve().parents[2]
RUN = "tests/clusters/a_run.py"
TIMEOUT_S = 60


def run(folder: Path, *words: str, flags: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """The exit code, what was printed, and what the job printed, of a run on two tasks."""
    argv = [
        sys.executable,
        str(ROOT / "launch" / "pods" / "slurm.py"),
        "run",
        "--name=tried",
        "--topology=cpu:2",
        f"--folder={folder / 'out'}",
    ]
    done = subprocess.run(
        [*argv, *flags, "--", RUN, f"--checkpoint={folder}/steps", *words],
        env=write_slurm(folder / "slurm"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    return done.returncode, done.stdout, (folder / "out" / f"tried-{JOB}.out").read_text()


def test_the_error_of_one_task_reaches_the_terminal_and_its_code_is_passed_on(tmp_path: Path):
    code, said, printed = run(tmp_path, "--steps=4", "--fail=1:70", flags=("--follow",))
    assert code == 70, said
    assert "task 1 ended with exit code 70 (bug" in said and "task 1: RuntimeError: the disk of place 1 is gone\n" in said, said
    assert "the run ended with exit code 70" in said and "task 0" not in said, said
    assert "0: process 0 of 2 begins at step 0\n" in printed and "1: process 1 of 2 begins at step 0\n" in printed, printed
    assert (tmp_path / "out" / f"tried-{JOB}" / "task_0" / "worker.code").read_text() == "0\n"
    # Its last lines, called later.
    assert command.main(["slurm.py", "logs", "--name=tried", f"--folder={tmp_path / 'out'}", "--lines=1"]) == 0


def test_a_hang_puts_the_job_in_the_queue_again_and_the_same_command_goes_on(tmp_path: Path):
    code, said, printed = run(tmp_path, "--steps=4", "--fail=0:77", flags=("--follow", "--time=1:00:00"))
    assert code == 0, said + printed
    assert "the run ended with exit code 77 (hang" in printed and "0: process 0 of 2 begins at step 2\n" in printed, printed
    assert printed.endswith("all 2 tasks are done\n"), printed
    calls = (tmp_path / "slurm" / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["sbatch", "srun", "squeue", "scontrol", "srun"], calls


@pytest.mark.full
def test_a_job_without_lives_left_ends_with_its_code(tmp_path: Path):
    code, said, _ = run(tmp_path, "--steps=4", "--fail=0:77", flags=("--follow", "--lives=0"))
    assert code == 77 and "task 0 ended with exit code 77" in said, said


def test_tasks_are_placed_a_gpu_each():
    assert slurm.place_tasks(parse_topology("h100:16"), gpus_a_node=0) == (2, 8, 8)
    assert slurm.place_tasks(parse_topology("a100:8"), gpus_a_node=4) == (2, 4, 4)
    assert slurm.place_tasks(parse_topology("h100:2"), gpus_a_node=0) == (1, 2, 2)
    assert slurm.place_tasks(parse_topology("cpu:2"), gpus_a_node=0) == (1, 2, 0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--topology=h100:12"], "found h100:12, expected a multiple of 8 GPUs, those of a node (--gpus_per_node)"),
        (["--topology=v5p:4x4x4"], "expected GPUs, as in h100:16"),
        (["--topology=h100:8", "--time=a day"], "--time: found 'a day', expected minutes"),
        (["--topology=h100:8", "--lives=-1"], "--lives: found -1, expected 0 or more"),
        ([], "--topology: found none"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert command.main(["slurm.py", "script", "--name=a", *words, "--", "launch/train.py"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ConfigError: ") and said.count("\n") == 1 and sentence in said, said


def test_logs_of_a_job_that_has_not_begun_are_told_of_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main(["slurm.py", "logs", "--name=a", f"--folder={tmp_path}"]) == 2
    assert "found no a-JOB.out, expected one; it appears when the job begins" in capsys.readouterr().err
