"""Faults of disks, processes and clocks, met by real runs: each ends with its code and one sentence, and the same command loses nothing.

Those of full and read-only disks mount a small disk, which needs root; the clock's needs libfaketime (Debian: apt-get install libfaketime).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import TIMEOUT_S, command, learned, lines, run, started
from test_hang import job

pytestmark = pytest.mark.full
STEPS, EVERY = 60, 20
FLAGS = (f"--config.checkpoint.every_steps={EVERY}", "--config.checkpoint.keep=100")
CLOCKS = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/local/lib/faketime")  # where distributions and make install put libfaketime


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that met no fault."""
    folder = tmp_path_factory.mktemp("whole")
    run(command("run", *FLAGS, steps=STEPS), folder)
    return folder / "runs" / "run"


def committed(workdir: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in workdir.glob("checkpoints/*/commit_success.txt") if path.parent.name.isdigit())


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def assert_goes_on(folder: Path, whole: Path, *, at_least: int, arguments: list[str] | None = None) -> None:
    """The same command finishes the run of `folder`, from step `at_least` or a later one, as if nothing had happened."""
    said = run(arguments or command("run", *FLAGS, steps=STEPS), folder)
    workdir = folder / "runs" / "run"
    assert int(said.split("going on from step ")[1].split()[0]) >= at_least, said
    assert (workdir / "batches_0.jsonl").read_bytes() == (whole / "batches_0.jsonl").read_bytes()
    assert learned(workdir) == learned(whole)


@contextlib.contextmanager
def small_disk(folder: Path, *, size_mb: int) -> Iterator[Path]:
    """A disk of its own, mounted at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path, *, leave_bytes: int) -> None:
    """Writes a file that leaves so much of its disk."""
    free = os.statvfs(path.parent).f_bavail * os.statvfs(path.parent).f_frsize
    path.write_bytes(bytes(max(free - leave_bytes, 0)))


def test_a_disk_that_fills_up_ends_the_run_and_loses_nothing(tmp_path: Path, whole: Path):
    log = tmp_path / "log.txt"
    with small_disk(tmp_path / "disk", size_mb=256) as disk:
        workdir = disk / "runs" / "run"
        with started(command("run", *FLAGS, steps=STEPS), disk, log) as process:
            wait_until(lambda: committed(workdir) != [], process, log)
            fill(disk / "filler", leave_bytes=100_000)
            assert process.wait(TIMEOUT_S) == 74, log.read_text()
        said = log.read_text()
        # Orbax logs tracebacks of its threads; ours is one sentence.
        assert "No space left on device" in said and "ended: checkpoint (74) at step " in said
        kept = max(committed(workdir))
        (disk / "filler").unlink()
        assert_goes_on(disk, whole, at_least=kept)


def test_a_disk_that_is_full_at_the_start_is_one_sentence(tmp_path: Path):
    with small_disk(tmp_path / "disk", size_mb=1) as disk:
        fill(disk / "filler", leave_bytes=0)
        with started(command("run", f"--config.workdir={disk}/run", steps=2), tmp_path, tmp_path / "log.txt") as process:
            assert process.wait(TIMEOUT_S) == 74
    said = (tmp_path / "log.txt").read_text()
    assert "OSError: [Errno 28] No space left on device" in said and "Traceback" not in said


def test_files_that_may_not_grow_end_the_run_and_lose_nothing(tmp_path: Path, whole: Path):
    """What a quota does: the limit comes in the midst of the run, below the size of a checkpoint's largest file."""
    log, workdir = tmp_path / "log.txt", tmp_path / "runs" / "run"
    with started(command("run", *FLAGS, steps=STEPS), tmp_path, log) as process:
        wait_until(lambda: committed(workdir) != [], process, log)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (600_000, 600_000))
        assert process.wait(TIMEOUT_S) == 74, log.read_text()
    assert "File too large" in log.read_text() and "ended: checkpoint (74) at step " in log.read_text()
    assert_goes_on(tmp_path, whole, at_least=max(committed(workdir)))


def test_a_folder_that_is_read_only_at_the_start_is_one_sentence(tmp_path: Path):
    with small_disk(tmp_path / "disk", size_mb=1) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with started(command("run", f"--config.workdir={disk}/run", steps=2), tmp_path, tmp_path / "log.txt") as process:
            assert process.wait(TIMEOUT_S) == 74
    said = (tmp_path / "log.txt").read_text()
    assert "OSError: [Errno 30] Read-only file system" in said and "Traceback" not in said


def test_a_folder_that_becomes_read_only_ends_the_run_and_loses_nothing(tmp_path: Path, whole: Path):
    """Checkpoints cannot be written any more; modes do not hold root, so the folder is made immutable."""
    log, workdir = tmp_path / "log.txt", tmp_path / "runs" / "run"
    with started(command("run", *FLAGS, steps=STEPS), tmp_path, log) as process:
        wait_until(lambda: committed(workdir) != [], process, log)
        subprocess.run(["chattr", "+i", str(workdir / "checkpoints")], check=True)
        try:
            assert process.wait(TIMEOUT_S) == 74, log.read_text()
        finally:
            subprocess.run(["chattr", "-i", str(workdir / "checkpoints")], check=True)
    assert "Operation not permitted" in log.read_text() and "ended: checkpoint (74) at step " in log.read_text()
    assert_goes_on(tmp_path, whole, at_least=max(committed(workdir)))


def data_workers(pid: int) -> list[int]:
    """The data workers of a training process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_data_worker_that_is_killed_ends_the_run_and_loses_nothing(tmp_path: Path, whole: Path):
    log, workdir = tmp_path / "log.txt", tmp_path / "runs" / "run"
    arguments = command("run", *FLAGS, "--config.data.num_workers=2", steps=STEPS)
    with started(arguments, tmp_path, log) as process:
        wait_until(lambda: committed(workdir) != [], process, log)
        victim, other = data_workers(process.pid)
        os.kill(victim, signal.SIGKILL)
        assert process.wait(TIMEOUT_S) == 65, log.read_text()
    said = log.read_text()
    assert "of 2 died (was it killed for want of memory?): found exit status -9" in said and "Traceback" not in said
    assert not Path(f"/proc/{other}").exists(), "the other worker ended with the run"
    assert_goes_on(tmp_path, whole, at_least=max(committed(workdir)), arguments=arguments)


@pytest.mark.parametrize("jump", ["+3d", "-3d"])
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, whole: Path, jump: str):
    libraries = [path for pattern in CLOCKS for path in Path("/").glob(f"{pattern[1:]}/libfaketimeMT.so.1")]
    assert libraries, "this test needs libfaketime: apt-get install libfaketime"
    log, workdir, offset = tmp_path / "log.txt", tmp_path / "runs" / "run", tmp_path / "offset"
    offset.write_text("+0")
    clock = {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with started(command("run", *FLAGS, "--config.hang_s=60", steps=STEPS), tmp_path, log, **clock) as process:
        wait_until(lambda: committed(workdir) != [], process, log)
        offset.write_text(jump)
        assert process.wait(TIMEOUT_S) == 0, log.read_text()
    first, last = (line["time"] for line in lines(workdir / "lives_0.jsonl"))
    assert first[:10] != last[:10], "the jump was seen by the run"
    assert (workdir / "batches_0.jsonl").read_bytes() == (whole / "batches_0.jsonl").read_bytes()
    assert learned(workdir) == learned(whole)
    assert all(
        line["time_s"] < TIMEOUT_S and line["time/left_s"] < TIMEOUT_S for line in lines(workdir / "metrics.jsonl") if "time_s" in line
    )


@pytest.mark.parametrize("failing", [0, 1])
def test_a_save_that_fails_on_one_host_ends_the_run_on_both(tmp_path: Path, failing: int):
    """Each host writes a half of the state, and one may write no large file any more."""
    flags = (*FLAGS, "--config.mesh.fsdp=2", "--config.mesh.data=1", "--config.hang_s=60")
    workdir = tmp_path / "runs" / "run"
    with contextlib.ExitStack() as stack:
        hosts = job(tmp_path, command("run", *flags, steps=10_000), stack, (0, 1))
        process, log = hosts[failing]
        wait_until(lambda: committed(workdir) != [], process, log)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (300_000, 300_000))
        codes = [host.wait(TIMEOUT_S) for host, _ in hosts]
        texts = [log.read_text() for _, log in hosts]
        assert codes == [74, 74], texts
    for text in texts:
        assert f"FailedSaveError: on host {failing} of 2: " in text and "File too large" in text
    ends = [lines(workdir / f"lives_{host}.jsonl")[-1] for host in (0, 1)]
    assert [end["reason"] for end in ends] == ["checkpoint"] * 2 and ends[0]["step"] == ends[1]["step"]
    kept = max(committed(workdir))
    assert ends[0]["step"] <= kept + 2 * EVERY, "the failure of one save is known when the next is due"
    said = run(command("run", *FLAGS, steps=kept + 1), tmp_path)
    assert f"going on from step {kept}" in said


def test_a_host_that_is_killed_ends_the_other_and_loses_nothing(tmp_path: Path):
    """The other waits in its step until its deadline, or is told by Gloo before."""
    workdir = tmp_path / "runs" / "run"
    with contextlib.ExitStack() as stack:
        arguments = command("run", *FLAGS, "--config.hang_s=20", steps=10_000)
        (first, first_log), (second, _) = job(tmp_path, arguments, stack, (0, 1))
        wait_until(lambda: committed(workdir) != [], first, first_log)
        second.kill()
        assert first.wait(TIMEOUT_S) == 77, first_log.read_text()
    assert "ended: hang (77) at step " in first_log.read_text()
    assert lines(workdir / "lives_0.jsonl")[-1]["reason"] == "hang"
    kept = max(committed(workdir))
    assert f"going on from step {kept}" in run(command("run", *FLAGS, steps=kept + 1), tmp_path)


def test_a_signal_before_the_first_step_has_its_code(tmp_path: Path):
    """Nothing is there to be saved, and nothing is waited for."""
    log, workdir = tmp_path / "log.txt", tmp_path / "runs" / "run"
    with started(command("run", *FLAGS, steps=STEPS), tmp_path, log) as process:
        wait_until(lambda: (workdir / "lives_0.jsonl").exists(), process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 75, log.read_text()
    assert "Traceback" not in log.read_text() and "ended: preempted (75) at step 0" in log.read_text()
    assert lines(workdir / "lives_0.jsonl")[-1]["reason"] == "preempted"
