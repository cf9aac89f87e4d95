"""launch/soak.py on the real pipeline with one damaged record in a hundred: every one listed once an epoch, memory, waits, clean ends.

`pytest -m full tests/e2e/test_soak.py` runs for half an hour (SOAK_MINUTES says otherwise), the fast tier for seconds.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data import soak_run
from tests.data.left_behind import orphans, shared_memory

ROOT = Path(__file__).resolve().parents[2]
STEPS_AN_EPOCH = soak_run.RECORDS // soak_run.ROWS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("soak")
    return folder, soak_run.write(folder)


def start(folder: Path, workdir: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "launch" / "soak.py"), f"--config={ROOT}/tests/data/soak_run.py"]
    command += [f"--config.data.dir={folder}", f"--config.workdir={workdir}", f"--out={workdir}.json", *flags]
    environment = os.environ | {"SOAK_RUN": str(workdir)}  # by which its workers are found
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def left_behind(workdir: Path, shared: set[str]) -> list[str]:
    """Processes of the ended program that still run, and what it left in shared memory."""
    left = sorted(orphans(shared))
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SOAK_RUN={workdir}\0".encode() in status.read_bytes():
                left.append(str(status))
        except OSError:
            continue  # it ended meanwhile
    return left


def check_lists(workdir: Path, damaged: dict[str, list[str]], batches: int) -> int:
    """Every damaged record is listed once in every whole epoch and at most once in the last one; returns the whole epochs."""
    listed: dict[tuple[str, int], list[str]] = collections.defaultdict(list)
    for line in (workdir / "soak_rejects.jsonl").read_text().splitlines():
        reject = json.loads(line)
        listed[reject["dataset"], reject["data_step"] // STEPS_AN_EPOCH].append(reject["record"])
    epochs = batches // STEPS_AN_EPOCH
    for dataset, records in damaged.items():
        for epoch in range(epochs):
            assert sorted(listed[dataset, epoch]) == sorted(records), (dataset, epoch)
        last = listed[dataset, epochs]
        assert len(set(last)) == len(last) and set(last) <= set(records)
    return epochs


@pytest.mark.full
def test_a_soak_lists_damaged_records_once_an_epoch_and_ends_cleanly(data: tuple[Path, dict[str, list[str]]], tmp_path: Path):
    folder, damaged = data
    shared = shared_memory()
    process = start(folder, tmp_path / "run", "--minutes=0.4", "--max_wait_s=60", "--max_growth=10")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out
    seen = json.loads((tmp_path / "run.json").read_text())
    assert check_lists(tmp_path / "run", damaged, seen["batches"]) >= 1
    assert [used["process"] for used in seen["memory"]] == ["main", "data-worker-0", "data-worker-1"]
    assert not left_behind(tmp_path / "run", shared)


def test_sigterm_ends_it_cleanly_with_its_report(data: tuple[Path, dict[str, list[str]]], tmp_path: Path):
    shared = shared_memory()
    process = start(data[0], tmp_path / "run", "--minutes=30")
    wait_for_rejects(process, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "ended by SIGTERM\n"), out
    assert out.startswith("soak: ") and "rejected: " in out
    assert not left_behind(tmp_path / "run", shared)


@pytest.mark.full
def test_an_exception_ends_it_cleanly_with_one_sentence(data: tuple[Path, dict[str, list[str]]], tmp_path: Path):
    shared = shared_memory()
    process = start(data[0], tmp_path / "run", "--minutes=30", "--config.data.max_reject_fraction=0.001")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, out
    assert err.startswith("DataError: ") and "rejected, which is more than data.max_reject_fraction 0.001" in err and err.count("\n") == 1
    assert not left_behind(tmp_path / "run", shared)


def wait_for_rejects(process: subprocess.Popen[str], workdir: Path) -> None:
    for _ in range(1_200):
        if (workdir / "soak_rejects.jsonl").exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no batch in two minutes")


@pytest.mark.full
def test_half_an_hour_keeps_pace_and_memory(data: tuple[Path, dict[str, list[str]]], tmp_path: Path):
    """At the pace of a model that takes half a second a step, which leaves the two workers of this pipeline some air."""
    folder, damaged = data
    minutes = float(os.environ.get("SOAK_MINUTES", "30"))
    shared = shared_memory()
    process = start(folder, tmp_path / "run", f"--minutes={minutes}", "--step_s=0.5")
    out, err = process.communicate(timeout=120 + 90 * minutes)
    print(out)
    assert (process.returncode, err) == (0, ""), out
    seen = json.loads((tmp_path / "run.json").read_text())
    assert check_lists(tmp_path / "run", damaged, seen["batches"]) >= minutes
    assert all(used["highest"] <= 1.05 * used["lowest"] for used in seen["memory"]) and seen["longest_wait_s"] <= 1
    assert not left_behind(tmp_path / "run", shared)
