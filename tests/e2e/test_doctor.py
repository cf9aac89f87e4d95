"""`launch/doctor.py` as a person runs it: exit codes, lines, the report, and nothing left behind; alone and as one of two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, TIMEOUT_S, environment, run_together


def command(*flags: str) -> list[str]:
    config = f"--config={ROOT}/tests/e2e/small_run.py:steps=2"
    return [sys.executable, str(ROOT / "launch" / "doctor.py"), config, "--seconds=0.2", *flags]


def doctor(folder: Path, *flags: str, **more: str) -> tuple[int, str]:
    done = subprocess.run(
        command(*flags), cwd=folder, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S
    )
    return done.returncode, done.stdout


@pytest.mark.full
def test_a_run_that_is_fine(tmp_path: Path):
    code, said = doctor(tmp_path, f"--out={tmp_path}/report.json")
    assert code == 0, said
    assert said.strip().endswith(" 0 FAIL")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [one["check"] for one in report["findings"]] == [
        "versions", "devices", "hosts", "clocks", "mesh", "tokenizer", "datasets", "data", "workdir", "disk", "start", "memory", "host",
        "pace",
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"data", "report.json"}
    assert not [path for path in (tmp_path / "data").rglob("*") if path.name.startswith(".doctor")]


def test_a_mistake_is_one_sentence(tmp_path: Path):
    code, said = doctor(tmp_path, "--mfu=2")
    assert (code, said) == (2, "ConfigError: command line: --mfu: found 2, expected more than 0, at most 1\n")


@pytest.mark.full
def test_faults_are_exit_code_1_and_mistakes_2(tmp_path: Path):
    (tmp_path / "wrong.txt").write_text("numpy==1.0\n")
    (tmp_path / "file").touch()
    code, said = doctor(
        tmp_path, "--requirements=wrong.txt", "--config.workdir=file/run", "--config.data.dir=nowhere", "--config.mesh.data=3",
        "--config.init.checkpoint=runs/none",
    )  # fmt: skip
    assert code == 1
    failed = {line.split()[1] for line in said.splitlines() if line.startswith("FAIL")}
    assert failed == {"versions", "mesh", "datasets", "data", "tokenizer", "workdir", "start"}, said
    assert "Traceback" not in said
    for flags, words in (
        (("--requirements=none.txt",), "none.txt: found no such file"),
        (("--chip=TPU v99",), "expected a file of configs/hardware"),
        (("--compile", "--devices=8"), "it compiles for what is here"),
        (("--out=none/report.json",), "expected one for the report"),
        (("--nothing",), "unrecognized arguments: --nothing"),
    ):
        code, said = doctor(tmp_path, *flags)
        assert code == 2 and words in said and len(said.splitlines()) == 1, said


@pytest.mark.full
def test_two_processes_look_together(tmp_path: Path):
    (first, said), (second, other) = run_together(command(), tmp_path, count=2)
    assert (first, second) == (0, 0), said + other
    assert "2 process(es) with 1 each" in said and "the same on 2 host(s)" in said and "ms on 2 hosts" in said
    assert "ok  " not in other
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"data"}


@pytest.mark.full
def test_a_host_that_does_not_come_is_named(tmp_path: Path):
    job = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:29641", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    code, said = doctor(tmp_path, "--join_s=4", **job)
    assert code == 1 and "FAIL  hosts     host 1 of 2 did not come within 4 s: start the same command there" in said
    assert said.strip().endswith("--join_s=SECONDS waits longer") and not (tmp_path / "runs").exists()
