"""A pod on this machine by its command line: what is run, bad flags, output, exit codes and signals. The programs are small ones."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ofa_jax.clusters.local import first_to_fail, free_port

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, str(ROOT / "launch" / "pods" / "local.py")]
SHOW = """
import os, sys
names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_PLATFORMS", "XLA_FLAGS", "SLURM_PROCID")
print(*(f"{name}={os.environ.get(name)}" for name in names), *sys.argv[1:])
"""
FAIL = """
import os, signal, sys, time
index = int(os.environ["JAX_PROCESS_ID"])
if index == 1:
    print("some words")
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "error":
        print("DataError: shard 7 is gone")
        sys.exit("ended: data (65)")
    sys.exit(int(sys.argv[1]))
time.sleep(60 if sys.argv[2] == "hangs" and index == 2 else 0.3)
sys.exit(77)
"""
STOP = """
import os, signal, sys, time
def stop(number, frame):
    print("stopped by", signal.Signals(number).name, flush=True)
    sys.exit(75)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
open(os.environ["JAX_PROCESS_ID"], "w").close()
time.sleep(60)
"""


def pod(folder: Path, *flags: str, program: str = SHOW, words: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Runs `program` as a pod and returns (exit code, stdout, stderr)."""
    (folder / "program.py").write_text(program)
    environ = {**os.environ, "XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=8", "SLURM_PROCID": "3", "JAX_PLATFORMS": "tpu"}
    done = subprocess.run(
        [*PROGRAM, *flags, "--", "program.py", *words], cwd=folder, env=environ, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def test_each_process_has_its_place_and_its_lines_say_whose_they_are(tmp_path: Path):
    port = free_port()
    code, said, _ = pod(tmp_path, "--processes=3", f"--port={port}", "--devices=2", "--log_dir=logs", words=("--config=x",))
    assert code == 0
    *shown, last = said.splitlines()
    expected = [
        f"JAX_COORDINATOR_ADDRESS=127.0.0.1:{port} JAX_NUM_PROCESSES=3 JAX_PROCESS_ID={index} JAX_PLATFORMS=cpu "
        "XLA_FLAGS=--xla_a=1 --xla_force_host_platform_device_count=2 SLURM_PROCID=None --config=x"
        for index in range(3)
    ]
    assert sorted(shown) == [f"[{index}] {line}" for index, line in enumerate(expected)]
    assert last.startswith("local pod: all 3 processes are done, in ")
    assert [(tmp_path / "logs" / f"process_{index}.log").read_text() for index in range(3)] == [f"{line}\n" for line in expected]


def test_a_dry_run_prints_what_a_shell_can_run(tmp_path: Path):
    code, said, _ = pod(tmp_path, "--processes=2", f"--port={free_port()}", "--dry_run", words=("--config.name=two words",))
    assert code == 0 and len(said.splitlines()) == 2
    for index, line in enumerate(said.splitlines()):
        assert line.startswith("env ") and "-u SLURM_PROCID" in line and shlex.split(line)[-1] == "--config.name=two words"
        done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert f"JAX_PROCESS_ID={index} " in done.stdout and "SLURM_PROCID=None --config.name=two words" in done.stdout
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "the following arguments are required: --processes; expected --processes=N"),
        (["--processes=0"], "--processes: found 0, expected 1 or more"),
        (["--processes=two"], "argument --processes: invalid int value: 'two'"),
        (["--processes=2", "--devices=0"], "--devices: found 0, expected 1 or more"),
        (["--processes=2", "--port=70000"], "--port: found 70000, expected 1 to 65535"),
        (["--processes=2", "--wait_s=0"], "--wait_s: found 0, expected more than 0"),
        (["--processes=2", "--nodes=2"], "unrecognized arguments: --nodes=2"),
        (["--processes=2", "--log_dir=/dev/null/logs"], "--log_dir: /dev/null/logs cannot be made (Not a directory), expected a folder"),
    ],
)
def test_a_bad_flag_is_one_sentence(tmp_path: Path, flags: list[str], said: str):
    code, out, error = pod(tmp_path, *flags)
    assert (code, out) == (2, "") and error.startswith("ConfigError: command line: ") and said in error and len(error.splitlines()) == 1


def test_a_missing_command_or_file_and_a_port_in_use_are_one_sentence(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for words, said in (
            (["--processes=2"], "found no command, expected it behind --, as -- launch/train.py"),
            (["--processes=2", "--", "launch/trane.py"], "found no file launch/trane.py, expected a program behind --"),
            (
                ["--processes=2", f"--port={port}", "--", "true"],
                f"--port: found {port} in use (Address already in use), expected a free one",
            ),
        ):
            done = subprocess.run([*PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("killed", "ends"), 137, "killed by SIGKILL (code 137); its last line: some words"),
        (("error", "ends"), 1, "code 1; its last error: DataError: shard 7 is gone"),
        (("65", "hangs"), 65, "code 65, data; its last line: some words"),
    ],
)
def test_who_failed_first_is_said_at_the_end_with_its_last_line(tmp_path: Path, words: tuple[str, ...], code: int, said: str):
    began = time.monotonic()
    found, out, _ = pod(tmp_path, "--processes=3", "--wait_s=1", program=FAIL, words=words)
    assert found == code and out.splitlines()[-1] == f"local pod: process 1 of 3 was the first to fail: {said}"
    assert ("local pod: process 2 did not end within 1 s of the first failure: killed" in out) == (words[1] == "hangs")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_all_processes(tmp_path: Path, number: signal.Signals):
    (tmp_path / "program.py").write_text(STOP)
    with subprocess.Popen(
        [*PROGRAM, "--processes=2", "--", "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            until = time.monotonic() + 30
            while not all((tmp_path / name).exists() for name in ("0", "1")):
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.02)
            process.send_signal(number)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 75
    assert sorted(out.splitlines())[:2] == [f"[{index}] stopped by {number.name}" for index in (0, 1)]
    assert "was the first to end: code 75, preempted" in out.splitlines()[-1]


def test_the_first_to_fail_is_the_cause():
    assert first_to_fail([(0, 5.01, 77), (2, 5.0, 137), (3, 5.02, 77)]) == 2
    assert first_to_fail([(0, 5.0, 77), (2, 5.3, 65), (3, 5.1, 77)]) == 2, "those who lost a host may be faster"
    assert first_to_fail([(0, 5.0, 77), (1, 60.0, 65)]) == 0
    assert first_to_fail([(1, 5.2, 74), (0, 5.1, 74)]) == 0
