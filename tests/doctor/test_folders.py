"""Folders and buckets are measured and left as they were; what cannot be written is told in a sentence."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.quickstart import get_config
from ofa_jax.data import storage
from ofa_jax.data.storage import StoreError
from ofa_jax.doctor import folders
from ofa_jax.doctor.folders import check_data_folder, check_room, check_workdir, made_folder
from tests.data.object_store import Fault, ObjectStore

PROBE = f".doctor-{socket.gethostname()}-{os.getpid()}"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "WAIT_S", 0.01)
        store.make_bucket("bucket")
        yield store


def config(workdir: Path | str, data_dir: str = "data", **checkpoint):
    found = get_config("debug")
    plan = dataclasses.replace(found.checkpoint, **checkpoint)
    return dataclasses.replace(found, workdir=str(workdir), checkpoint=plan, data=dataclasses.replace(found.data, dir=data_dir))


def workdir(path: Path | str, **checkpoint):
    [found] = check_workdir(config(path, **checkpoint), checkpoint_bytes=10**9, seconds=0.05)
    return found


def test_a_folder_is_measured_and_left_as_it_was(tmp_path: Path):
    found = workdir(tmp_path / "runs" / "{name}", deadline_s=1e6)
    assert found.status == "ok" and found.numbers["write_mb_s"] > 1 and found.numbers["read_mb_s"] > 1
    assert list(tmp_path.iterdir()) == []
    slow = workdir(tmp_path, deadline_s=1e-3)
    assert slow.status == "WARN" and slow.text.endswith(
        "expected at most checkpoint.deadline_s=0.001; take a faster disk, or a longer deadline"
    )


def test_what_others_put_into_a_made_folder_stays(tmp_path: Path):
    with made_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "other").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "other"]


def test_a_file_in_the_place_of_a_folder_and_a_folder_that_takes_no_file(tmp_path: Path):
    (tmp_path / "file").touch()
    found = workdir(tmp_path / "file" / "run")
    assert found.status == "FAIL" and found.text.endswith(
        "Not a directory, expected a folder to write to; name another one with --config.workdir"
    )
    assert workdir("/proc/run").status == "FAIL"
    assert "expected a folder of a disk that all hosts share" in workdir("gs://bucket/run").text


def test_a_full_disk_is_told_and_the_file_removed(tmp_path: Path):
    (tmp_path / PROBE).symlink_to("/dev/full")  # whatever is written there, the kernel answers that no space is left
    found = workdir(tmp_path)
    assert found.status == "FAIL" and f"{tmp_path}: the disk is full (" in found.text
    assert list(tmp_path.iterdir()) == []


def test_room_for_checkpoints_counts_what_stays_and_what_is_there(tmp_path: Path):
    plan = config(tmp_path / "run", keep=3, keep_best=0)
    [found] = check_room(plan, checkpoint_bytes=1_000)
    assert found.status == "ok" and found.numbers["needed_bytes"] == 4_000
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "7" / "array").write_bytes(bytes(1_500))
    assert check_room(plan, checkpoint_bytes=1_000)[0].numbers["needed_bytes"] == 2_500
    [found] = check_room(plan, checkpoint_bytes=10**15)
    assert found.status == "FAIL" and "make room, or keep fewer" in found.text


def test_a_data_folder_may_be_read_only(tmp_path: Path):
    shard = tmp_path / "shard"
    shard.write_bytes(bytes(3 * 2**20))
    [found] = check_data_folder(config("runs", str(tmp_path)), [(str(shard), 3 * 2**20)], seconds=0.05)
    assert found.status == "ok" and found.numbers["read_mb_s"] > 1 and found.numbers["write_mb_s"] > 1
    assert list(tmp_path.iterdir()) == [shard]
    [found] = check_data_folder(config("runs", "/proc/none"), [(str(shard), 3 * 2**20)], seconds=0.05)
    assert found.status == "ok" and "not writable" in found.text and found.numbers["write_mb_s"] is None
    assert check_data_folder(config("runs", str(tmp_path)), [], seconds=0.05)[0].status == "FAIL"


def test_a_bucket_is_measured_and_left_as_it_was(store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders, "CHUNK", 2**16)
    store.put("gs://bucket/data/shard", bytes(2**20))
    files = [("gs://bucket/data/shard", 2**20)]
    store.faults = [Fault(status=503, every=5)]
    [found] = check_data_folder(config("runs", "gs://bucket/data"), files, seconds=0.1)
    assert found.status == "ok" and found.numbers["read_mb_s"] > 0 and found.numbers["write_mb_s"] > 0
    assert store.names("gs://bucket") == ["data/shard"] and store.faults[0].struck > 0


def test_a_bucket_that_does_not_answer_or_refuses_is_one_sentence(store: ObjectStore):
    files = [("gs://bucket/data/shard", 2**20)]
    store.put("gs://bucket/data/shard", bytes(2**20))
    plan = config("runs", "gs://bucket/data")
    store.faults = [Fault(status=503)]
    with pytest.raises(StoreError, match="gs://bucket/data/shard: the store failed 8 times"):
        check_data_folder(plan, files, seconds=0.1)
    store.faults = [Fault(status=403)]
    with pytest.raises(StoreError, match="the store refuses it"):
        check_data_folder(plan, files, seconds=0.1)
