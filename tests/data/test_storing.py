"""Files appear whole, on disks and in stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data import storage
from ofa_jax.data.storage import as_path, exists, read_bytes
from ofa_jax.data.storing import in_order, names_in, remove_file, remove_folder, write_bytes, written_folder, written_whole
from tests.data.object_store import Fault, ObjectStore


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with ObjectStore(page_size=3) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "WAIT_S", 0.01)
        store.make_bucket("bucket")
        yield store


@pytest.fixture(params=["disk", "store", "a failing store"])
def folder(request: pytest.FixtureRequest, store: ObjectStore, tmp_path: Path) -> Any:
    # Not every third: whether something is there may take three requests, which are asked again together.
    store.faults = [Fault(status=503, every=4)] if request.param == "a failing store" else []
    return tmp_path / "data" if request.param == "disk" else as_path("gs://bucket/data")


def test_a_file_is_there_when_it_is_whole_and_not_at_all_after_an_error(folder: Any) -> None:
    path = folder / "deep" / "file"
    with pytest.raises(ValueError, match="stop"), written_whole(path) as local:
        local.write_bytes(b"half")
        raise ValueError("stop")
    assert not exists(path)
    with written_whole(path) as local:
        local.write_bytes(b"whole" * 1000)
        assert not exists(path)
    assert read_bytes(path) == b"whole" * 1000
    write_bytes(path, b"other")
    assert read_bytes(path) == b"other"
    assert {name for name in names_in(folder / "deep") if not name.startswith(".")} == {"file"}
    remove_file(path)
    remove_file(path)
    assert not exists(path)


def test_folders_are_replaced_and_removed_with_one_file_last(folder: Any) -> None:
    for names in ("ab", "bc"):
        with written_folder(folder / "set") as local:
            for name in names:
                (local / name).write_text(name + names)
    assert names_in(folder / "set") == {"b", "c"} and read_bytes(folder / "set" / "b") == b"bbc"
    for number in range(5):
        write_bytes(folder / "set" / "deep" / f"{number}", b"x")
    write_bytes(folder / "beside", b"stays")
    remove_folder(folder / "set", last="deep/0")
    remove_folder(folder / "set", last="deep/0")
    assert names_in(folder) == {"beside"} and names_in(folder / "set") == set()


def test_the_last_file_of_a_folder_outlives_the_others(store: ObjectStore) -> None:
    folder = as_path("gs://bucket/data/set")
    for name in ("a", "note", "z"):
        write_bytes(folder / name, b"x")
    store.requests.clear()
    remove_folder(folder, last="note")
    removed = [request.place for request in store.requests if request.method == "DELETE"]
    assert removed[-1] == "bucket/data/set/note" and len(removed) == 3


def test_a_bucket_that_is_not_there_is_named(store: ObjectStore, tmp_path: Path) -> None:
    sentence = "gs://none/file: found no gs://none to write to, expected a bucket that is there; make it first"
    with pytest.raises(DataError, match=sentence):
        write_bytes(as_path("gs://none/file"), b"x")
    with pytest.raises(DataError, match=sentence), written_whole(as_path("gs://none/file")) as local:
        local.write_bytes(b"x")


@pytest.mark.parametrize("remote", [False, True])
def test_results_come_in_order_a_few_ahead(remote: bool) -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def slow(number: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.001 * (number % 3))
        with lock:
            under_way -= 1
        return number * number

    assert list(in_order(slow, iter(range(100)), remote=remote)) == [number * number for number in range(100)]
    assert most > 1 if remote else most == 1
