"""Beam's portable path, which Flink, Spark and Dataflow share: a job service gets the graph, workers elsewhere get pickled functions.

The job service is Beam's own (`local_job_service_main`). Its workers are threads of the launcher (LOOPBACK), or processes of a worker pool
(EXTERNAL) that have this repository on their path and nothing else of the launcher, as the workers of a cluster have.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_tars import write_tars

ROOT = Path(__file__).parents[3]
WAIT_S = 60


@contextlib.contextmanager
def process(*module: str, folder: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a module of Beam in the background, from a folder of its own, and ends it by its id."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the worker pool starts "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": path} | more
    with (folder / f"{module[0].rpartition('.')[2]}.log").open("wb") as log:
        started = subprocess.Popen([sys.executable, "-m", *module], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(timeout=WAIT_S)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(port: int, started: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        assert started.poll() is None, f"{started.args} ended with {started.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"{started.args}: nothing answers at port {port}")


@pytest.fixture(scope="module")
def job_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("service"), free_port()
    with process("apache_beam.runners.portability.local_job_service_main", f"--port={port}", folder=folder) as service:
        wait_for(port, service)
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tars(tmp_path_factory.mktemp("tars"), tars=3, samples=6)


@pytest.fixture(scope="module")
def direct(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the direct runner makes of the source."""
    data_dir = tmp_path_factory.mktemp("direct")
    assert build(source, data_dir) == (0, "")
    return digests(data_dir)


def build(source: Path, data_dir: Path, *flags: str) -> tuple[int, str]:
    """Runs the command; returns its exit status and what it said on stderr."""
    command = [sys.executable, str(ROOT / "launch" / "prepare.py"), "build", "cc3m", f"--source={source}", f"--data_dir={data_dir}"]
    done = subprocess.run(
        [*command, "--shard_records=7", *flags], cwd=data_dir, capture_output=True, text=True, check=False, timeout=WAIT_S * 2
    )
    return done.returncode, done.stderr


def digests(data_dir: Path) -> dict[str, str]:
    """Returns the digest of every file of the build, those between the passes too."""
    folder = data_dir / "cc3m"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.full
def test_workers_in_the_launcher_make_the_same_bytes(source: Path, direct: dict[str, str], job_endpoint: str, tmp_path: Path) -> None:
    flags = ("--runner=PortableRunner", f"--beam=--job_endpoint={job_endpoint}", "--beam=--environment_type=LOOPBACK")
    assert build(source, tmp_path, *flags) == (0, "")
    assert digests(tmp_path) == direct
    assert sum(".array_record-" in name and name.endswith("-of-00003") for name in direct) == 3


@pytest.mark.full
def test_workers_of_another_machine_make_the_same_bytes(source: Path, direct: dict[str, str], job_endpoint: str, tmp_path: Path) -> None:
    port = free_port()
    pool = "apache_beam.runners.worker.worker_pool_main"
    with process(pool, f"--service_port={port}", folder=tmp_path, PYTHONPATH=str(ROOT)) as started:
        wait_for(port, started)
        workers = ("--beam=--environment_type=EXTERNAL", f"--beam=--environment_config=127.0.0.1:{port}")
        assert build(source, tmp_path, "--runner=PortableRunner", f"--beam=--job_endpoint={job_endpoint}", *workers) == (0, "")
    assert digests(tmp_path) == direct


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--runner=NoSuch"], "error: --runner=NoSuch: found what Beam does not take, expected a runner and its options: Unexpected"),
        (
            ["--runner=PortableRunner", "--beam=--job_endpoint=127.0.0.1:9", "--beam=--job_server_timeout=1"],
            "error: --runner=PortableRunner: found no job service that answers, expected one at --job_endpoint=127.0.0.1:9",
        ),
    ],
)
def test_a_runner_that_is_not_there_is_named(source: Path, tmp_path: Path, flags: list[str], sentence: str) -> None:
    status, said = build(source, tmp_path, *flags)
    assert status == 1 and said.startswith(sentence), said
