"""Exit codes of many processes as one, and the lines of a log that say what ended it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ofa_jax.clusters import worker
from ofa_jax.clusters.ends import describe, goes_on, judge, last_error
from ofa_jax.config.errors import UserError
from ofa_jax.parallel import hosts
from tests.clusters.pod_of_folders import answers
from tests.monitor.metadata_server import metadata_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([77, 70, 77, 137], 70),  # what has to be mended, not what it led to
        ([143, 1, 77], 1),
        ([137, 75, 75], 75),
        ([77, 134], 77),
        ([137, 0], 137),
        ([], 0),
    ],
)
def test_one_code_of_many(codes: list[int], code: int):
    assert judge(codes) == code


def test_codes_are_told_in_words():
    assert (
        describe(65).startswith("exit code 65 (data: ")
        and describe(137) == "exit code 137 (killed by SIGKILL)"
        and describe(1) == "exit code 1"
    )
    assert [code for code in (0, 2, 65, 70, 71, 74, 75, 76, 77, 137) if goes_on(code)] == [75, 77, 137]


def test_the_last_error_is_the_exception_and_how_the_run_ended():
    log = "step 1\nTraceback (most recent call last):\n  x\nValueError: first\nstep 2\njax.errors.JaxRuntimeError: second\n[noise] \n"
    log += "ended: oom (71) at step 2: x\n\n"
    assert last_error(log) == ["jax.errors.JaxRuntimeError: second", "ended: oom (71) at step 2: x"]
    assert last_error("one\ntwo\n") == ["one", "two"] and last_error("") == []
    assert last_error("ValueError: long ago\n" + "step\n" * 100) == ["step"] * 5


def test_a_place_is_counted_over_slices_as_jax_counts_it(monkeypatch: pytest.MonkeyPatch):
    with metadata_server(answers(slices=2, workers=4)) as server:
        monkeypatch.setenv("GCE_METADATA_HOST", f"{server}/1-2")
        place = worker.find_place()
    assert place == worker.Place(6, 8)
    assert hosts.place(worker.run_environment(place)) == (6, 8)
    assert hosts.place(worker.run_environment(worker.Place())) == (0, 1)


def test_pods_of_several_slices_have_places_of_their_own():
    slice_of_two = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
    assert hosts.place(slice_of_two) == (1, 2)
    third = {"MEGASCALE_SLICE_ID": "2", "MEGASCALE_NUM_SLICES": "3", "MEGASCALE_COORDINATOR_ADDRESS": "c"}
    assert hosts.place({**slice_of_two, **third}) == (5, 6)


def start(files: worker.Files, *program: str) -> int:
    holder = [sys.executable, str(ROOT / "launch" / "pods" / "worker.py"), "hold", f"--folder={files.folder}", "--"]
    return worker.start(files, ["tests/clusters/a_run.py", *program], holder=holder)


def wait_for(files: worker.Files, state: str) -> worker.Report:
    deadline = time.monotonic() + 30
    while (found := worker.report(files, worker.Place(), since=0)).state != state:
        assert time.monotonic() < deadline, files.log.read_text()
        time.sleep(0.05)
    return found


def test_a_worker_is_killed_where_it_does_not_end_and_its_report_fits_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("GCE_METADATA_HOST", "")
    files = worker.Files(tmp_path / "pod")
    assert worker.report(files, worker.Place(), since=0).state == "none" and worker.stop(files, grace_s=1) == "nothing runs"
    number = start(files, f"--checkpoint={tmp_path}/steps", "--steps=1", "--pause_s=1000")
    with pytest.raises(UserError, match="running, expected nothing; stop it first, or watch it"):
        start(files)
    while "begins" not in wait_for(files, "running").log:  # before, it would end on SIGTERM
        time.sleep(0.05)
    assert worker.stop(files, grace_s=0.2) == "killed, 0.2 s after SIGTERM"
    assert wait_for(files, "ended").code == 128 + signal.SIGKILL
    assert os.waitpid(number, 0)[1] == signal.SIGKILL

    # A log of long lines comes in pieces, each of which is one write to a pipe, and none is lost.
    files.log.write_text("".join(f"{number} \x1b[1m{'ä' * 300}\n" for number in range(20)))
    said, offset = "", 0
    while (found := worker.report(files, worker.Place(), since=offset)).log:
        assert len(found.to_line().encode()) < 4096 and worker.Report.from_line(found.to_line()) == found
        said, offset = said + found.log, found.offset
    assert said == files.log.read_text()
    assert worker.Report.from_line('{"worker": 0, "workers') is None and worker.Report.from_line("warning") is None


def test_a_worker_outlives_the_connection_that_started_it(tmp_path: Path):
    argv = [sys.executable, "launch/pods/worker.py", "run", f"--folder={tmp_path / 'pod'}", "--", "tests/clusters/a_run.py"]
    argv += [f"--checkpoint={tmp_path}/steps", "--steps=3", "--fail=0:65"]
    with subprocess.Popen(
        argv, cwd=ROOT, env={**os.environ, "GCE_METADATA_HOST": ""}, start_new_session=True, stdout=subprocess.DEVNULL
    ) as ssh:
        files = worker.Files(tmp_path / "pod")
        assert ssh.wait(30) == 0
    number = json.loads(files.started.read_text())["pid"]
    assert number != ssh.pid and os.getsid(0) != number
    found = wait_for(files, "ended")
    assert found.code == 65 and found.error[0] == "RuntimeError: the disk of place 0 is gone"


@pytest.mark.parametrize(("code", "passed_on"), [(77, 42), (70, 70)])
def test_a_scheduler_with_a_code_of_its_own_is_given_it(tmp_path: Path, code: int, passed_on: int):
    command = ["tests/clusters/a_run.py", f"--checkpoint={tmp_path}/steps", f"--fail=0:{code}"]
    argv = [sys.executable, "launch/pods/worker.py", "mapped", "--again=42", "--", *command]
    assert subprocess.run(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60).returncode == passed_on
