"""Builds into an object store: the files of a local build, byte for byte, whatever the store's faults and the kills."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_tars import write_tars

from tests.data.object_store import Fault, ObjectStore

ROOT = Path(__file__).parents[3]
DATA = "gs://bucket/data"
KILLS = 3
WAIT_S = 300


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        store.make_bucket("bucket")
        yield store


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tars(tmp_path_factory.mktemp("tars"), tars=4, samples=6)


@pytest.fixture(scope="module")
def local(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    data_dir = tmp_path_factory.mktemp("local")
    done = subprocess.run(command(source, data_dir), capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert (done.returncode, done.stderr) == (0, "")
    return files_of(data_dir / "cc3m")


def command(source: Path, data_dir: str | Path, *flags: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "launch" / "prepare.py"),
        *("build", "cc3m", f"--source={source}", f"--data_dir={data_dir}", "--shard_records=7", *flags),
    ]


def run(store: ObjectStore, arguments: list[str]) -> tuple[int, str]:
    """Runs a command with the store as Google's; returns its exit status and all that it said."""
    environment = os.environ | store.environment
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=WAIT_S)
    return done.returncode, done.stdout + done.stderr


def files_of(folder: Path) -> dict[str, str]:
    """Returns the digest of every file of a build, those between the passes too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def objects_of(store: ObjectStore, address: str) -> dict[str, str]:
    return {name: hashlib.sha256(store.get(f"{address}/{name}")).hexdigest() for name in store.names(address)}


@pytest.mark.full
def test_a_store_with_faults_holds_the_files_of_a_local_build(store: ObjectStore, source: Path, local: dict[str, str]) -> None:
    store.faults = [Fault(status=503, every=5)]
    status, said = run(store, command(source, DATA, "--workers=2"))
    assert status == 0, said
    assert objects_of(store, f"{DATA}/cc3m") == local
    assert store.faults[0].struck > 5

    store.faults, there = [], len(store.requests)
    status, said = run(store, command(source, DATA))
    assert (status, said) == (0, f"{DATA}/cc3m: already prepared\n")
    assert len(store.requests) - there < 10
    status, said = run(store, [*command(source, DATA)[:2], "verify", f"--data_dir={DATA}"])
    assert (status, said) == (0, f"every shard below {DATA} is as its manifest says\n")


@pytest.mark.full
def test_what_is_asked_of_a_store_does_not_grow_with_what_is_done(store: ObjectStore, source: Path) -> None:
    """Each pass lists its folder instead of asking for thousands of files, and makes what is missing, nothing else."""
    assert run(store, command(source, DATA))[0] == 0
    whole, folder = objects_of(store, f"{DATA}/cc3m"), f"{DATA}/cc3m"
    store.remove(f"{folder}/manifest.json")
    shard = next(name for name in whole if name.endswith("00002-of-00004"))
    store.remove(f"{folder}/passes/written/{shard}.json")  # as when a worker was killed before its note
    store.put(f"{folder}/{shard}", b"other bytes")
    store.requests.clear()
    status, said = run(store, command(source, DATA))
    assert status == 0 and "write: going on, 3 of 4 are there" in said, said
    assert objects_of(store, folder) == whole
    index = [request.place for request in store.requests if "/passes/index" in request.place and not request.media]
    assert len(index) <= 4, index  # the folder, and not its files


@pytest.mark.full
def test_other_options_and_other_files_are_refused_and_rebuilt_only_where_ours(store: ObjectStore, source: Path, tmp_path: Path) -> None:
    store.put(f"{DATA}/cc3m/raw.tar", b"of value")
    for flags in ((), ("--rebuild",)):
        status, said = run(store, command(source, DATA, *flags))
        assert status == 1 and "gs://bucket/data/cc3m: found files of another origin, expected an empty folder" in said, said
    assert store.names(DATA) == ["cc3m/raw.tar"]
    store.remove(f"{DATA}/cc3m/raw.tar")
    store.put(f"{DATA}/cc3m/passes/options.json", json.dumps({"row": "question"}).encode())
    store.put(f"{DATA}/cc3m/passes/index/old.npz", b"of other options")
    status, said = run(store, command(source, DATA))
    assert status == 1 and "unfinished work of other options" in said and "row: question there, caption now" in said, said
    status, said = run(store, command(source, DATA, "--rebuild"))
    assert status == 0 and "cc3m/passes/index/old.npz" not in store.names(DATA), said

    status, said = run(store, command(source, "gs://nowhere/data"))
    assert status == 1 and "found no gs://nowhere to write to, expected a bucket that is there; make it first" in said, said
    status, said = run(store, command(source, tmp_path, "--runner=dataflow"))
    assert status == 1 and f"--data_dir: found {tmp_path} on a disk of this machine, expected an address" in said, said


@pytest.mark.full
def test_pictures_of_evaluation_sets_in_the_store_are_kept_out(store: ObjectStore, source: Path, tmp_path: Path) -> None:
    own = write_tars(tmp_path / "evaluation", tars=1, samples=2)
    build = [*command(own, DATA)[:3], "webdataset", f"--source={own}", f"--data_dir={DATA}", "--dataset=held_out", "--row=caption"]
    assert run(store, build)[0] == 0
    table = [*command(source, DATA)[:2], "pictures", f"--data_dir={DATA}", "--dataset=held_out", "--split=train"]
    assert run(store, table) == (0, f"{DATA}/held_out/pictures-train.npz: 2 pictures\n")
    status, said = run(store, command(source, DATA, "--against=held_out/train"))
    assert status == 0 and "2 decide/leak" in said, said


@pytest.mark.full
def test_a_killed_build_goes_on_to_the_same_bytes(store: ObjectStore, tmp_path: Path) -> None:
    source = write_tars(tmp_path / "tars", tars=16, samples=60)
    flags = ("--workers=2", "--shard_records=60")
    assert run(store, command(source, tmp_path / "whole", *flags))[0] == 0
    whole, draw = files_of(tmp_path / "whole" / "cc3m"), random.Random(7)
    for number in range(KILLS):
        build = subprocess.Popen(
            command(source, DATA, *flags),
            env=os.environ | store.environment | {"TMPDIR": str(tmp_path)},  # what a kill leaves behind goes with the test
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wanted = len(whole) * (number + draw.random()) / (KILLS + 1)
        while build.poll() is None and len(store.names(f"{DATA}/cc3m")) < wanted:
            time.sleep(0.01)
        time.sleep(0.2 * draw.random())
        os.killpg(build.pid, signal.SIGKILL)
        build.communicate(timeout=WAIT_S)
        assert build.returncode == -signal.SIGKILL, "the build ended before it was killed"
    shards = {name: store.generation(f"{DATA}/cc3m/{name}") for name in finished(store)}
    status, said = run(store, command(source, DATA, *flags))
    assert status == 0 and ("going on" in said or "are there" in said), said
    assert objects_of(store, f"{DATA}/cc3m") == whole
    assert {name: store.generation(f"{DATA}/cc3m/{name}") for name in shards} == shards, "written a second time"


def finished(store: ObjectStore) -> list[str]:
    """Returns the shards that have their notes."""
    notes = [name for name in store.names(f"{DATA}/cc3m/passes/written") if name.endswith(".json")]
    return [note.removesuffix(".json") for note in notes]
