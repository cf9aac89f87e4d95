"""What is asked of a store: answers, deadlines, tries, and one sentence where it ends."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import VocabConfig
from ofa_jax.data import storage
from ofa_jax.data.storage import Range, StoreError
from ofa_jax.vocab.tokenizer import load_tokenizer
from tests.data.object_store import Fault, ObjectStore

ROOT = Path(__file__).resolve().parents[2]
FILE = "gs://bucket/data/file"


@pytest.fixture
def store(monkeypatch, tmp_path: Path) -> Iterator[ObjectStore]:
    """A store with short deadlines and waits, and a cache of its own."""
    with ObjectStore(page_size=3) as store:
        for name, value in (store.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "WAIT_S", 0.01)
        store.put(FILE, bytes(range(256)) * 100)
        yield store


def test_a_store_answers_as_a_folder_does(store: ObjectStore, tmp_path: Path):
    for name in ("a.json", "b.json", "c.tar", "d.json", "deep/e.json"):
        store.put(f"gs://bucket/set/{name}", name.encode())
    store.put("gs://bucket/set/marked/", b"")  # a folder as consoles make them
    store.fetch_folder("gs://bucket/set", tmp_path / "set")
    local, remote = tmp_path / "set", storage.as_path("gs://bucket/set")
    expected = {"a.json": 6, "b.json": 6, "c.tar": 5, "d.json": 6, "deep": None, "marked": None}
    assert storage.list_folder(remote) == storage.list_folder(local) | {"marked": None} == expected
    store.requests.clear()
    storage.list_folder(remote)
    assert len(store.requests) == 2  # pages of three
    for folder in (local, remote):
        assert storage.list_folder(folder / "none") is None
        assert storage.is_folder(folder / "deep") and not storage.is_folder(folder / "a.json") and not storage.is_folder(folder / "none")
        assert storage.exists(folder / "deep") and storage.exists(folder / "a.json") and not storage.exists(folder / "a.jso")
        assert storage.file_size(folder / "c.tar") == 5 and storage.read_bytes(folder / "deep" / "e.json") == b"deep/e.json"
        assert storage.list_files(str(folder), "*.json") == [f"{folder}/{name}.json" for name in "abd"]
        assert storage.list_files(str(folder), "**/e.*") == [f"{folder}/deep/e.json"]
        with storage.open_file(f"{folder}/c.tar") as file:
            assert file.read(3) == b"c.t"
        ranges = [Range(f"{folder}/c.tar", 1, 4), Range(f"{folder}/a.json", 0, 6), Range(f"{folder}/a.json", 3, 3)]
        assert storage.read_ranges(ranges) == [b".ta", b"a.json", b""]
        for reading in (storage.read_bytes, storage.file_size, lambda path: storage.read_ranges([Range(str(path), 0, 1)])):
            with pytest.raises(FileNotFoundError):
                reading(folder / "none.json")
        for start in (4, 400):
            with pytest.raises(OSError, match="cut off") as caught:
                storage.read_ranges([Range(f"{folder}/a.json", start, start + 9)])
            assert f"{folder}/a.json" in str(caught.value)
    with pytest.raises(DataError, match="found an address of unknown kind, expected gs://"):
        storage.as_path("ftp://server/data")


@pytest.mark.parametrize(
    "fault", [Fault(status=503, every=3), Fault(status=429, every=3), Fault(reset=True, every=3)], ids=["503", "429", "reset"]
)
def test_faults_that_pass_are_waited_for(store: ObjectStore, fault: Fault):
    store.faults = [fault]
    data = store.get(FILE)
    ranges = [Range(FILE, start, start + 500) for start in range(0, 20_000, 1_000)]
    assert storage.read_ranges(ranges) == [data[start:stop] for _, start, stop in ranges]
    assert len(store.requests) == 20 + fault.struck  # none is asked again that was answered
    assert storage.list_folder("gs://bucket/data") == {"file": len(data)}
    assert storage.exists(FILE) and storage.read_bytes(FILE) == data


def test_a_stall_ends_at_its_deadline_and_is_tried_again(store: ObjectStore, monkeypatch):
    monkeypatch.setattr(storage, "DEADLINE_S", 0.5)
    store.faults = [Fault(stall_s=30, times=2, media=True)]
    began = time.monotonic()
    assert storage.read_ranges([Range(FILE, 0, 4), Range(FILE, 4, 8), Range(FILE, 8, 12)]) == [b"\0\1\2\3", b"\4\5\6\7", b"\10\11\12\13"]
    assert 0.5 <= time.monotonic() - began < 25, "nobody waits for the stalls of 30 s"
    assert len(store.requests) == 5


@pytest.mark.parametrize(
    ("fault", "said", "tries"),
    [
        (Fault(status=503), "the store failed 8 times, the last time with: HttpError: as the test wishes, 503; check the network", 8),
        (Fault(stall_s=9), "the store failed 8 times, the last time with: no answer within 0.1", 8),
        (Fault(reset=True), "the store failed 8 times, the last time with: Client", 8),
        (Fault(status=403), "the store refuses it (OSError: Forbidden", 1),
        (Fault(status=401), "the store refuses it (HttpError: as the test wishes, 401)", 1),
        (Fault(status=400), "the store does not take the question (HttpError: as the test wishes, 400); check the address", 1),
    ],
    ids=["503", "stall", "reset", "403", "401", "400"],
)
def test_a_store_that_stays_bad_ends_in_one_sentence(store: ObjectStore, fault: Fault, said: str, tries: int, monkeypatch):
    monkeypatch.setattr(storage, "DEADLINE_S", 0.05)
    if not fault.stall_s:
        monkeypatch.setattr(storage, "DEADLINE_S", 5)
    store.faults = [fault]
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        storage.read_ranges([Range(FILE, 0, 4)])
    assert time.monotonic() - began < 10
    assert str(caught.value).startswith(f"{FILE}: {said}"), caught.value
    assert len(store.requests) == tries
    assert isinstance(caught.value, DataError) and isinstance(caught.value, OSError)


def test_reads_of_one_call_are_under_way_together(store: ObjectStore):
    store.gather = storage.AT_ONCE
    storage.read_ranges([Range(FILE, place, place + 1) for place in range(200)])
    assert store.most_at_once == storage.AT_ONCE


def copy_in_a_process(gate: object, out: object) -> None:
    gate.wait()
    out.put((os.getpid(), storage.local_copy(FILE).read_bytes()))


def test_a_forked_process_asks_for_itself(store: ObjectStore):
    program = (
        "import os; from ofa_jax.data import storage; "
        f"read = lambda: storage.read_ranges([storage.Range('{FILE}', 1, 4)] * 9) == [bytes([1, 2, 3])] * 9; "
        "here = read(); child = os.fork(); child or os._exit(0 if read() else 1); print(here, os.waitpid(child, 0)[1], read())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "0", "True"]


def test_a_copy_is_made_once_for_all_processes(store: ObjectStore, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    gate, out = context.Event(), context.Queue()
    processes = [context.Process(target=copy_in_a_process, args=(gate, out)) for _ in range(3)]
    for process in processes:
        process.start()
    store.latency_s = 0.05
    gate.set()
    made = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({pid for pid, _ in made}) == 3 and all(data == store.get(FILE) for _, data in made)
    assert len([request for request in store.requests if request.media]) == 1
    kept = [path for path in (tmp_path / "cache" / "ofa_jax").iterdir() if not path.name.startswith(".")]
    assert len(kept) == 1 and kept[0] == storage.local_copy(FILE)


def test_a_copy_follows_its_object_and_is_never_half_made(store: ObjectStore, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(storage, "COPY_BYTES", 1000)
    folder = tmp_path / "cache" / "ofa_jax"

    def files() -> list[Path]:
        return [path for path in folder.iterdir() if not path.name.endswith(".lock")]

    first = storage.local_copy(FILE)
    assert first.read_bytes() == store.get(FILE) and first.name.endswith("-file") and files() == [first]
    store.put(FILE, b"another" * 1000)
    with first.open("rb") as opened:
        second = storage.local_copy(FILE)
        assert second.read_bytes() == b"another" * 1000 and files() == [second]
        assert len(opened.read()) == 25_600  # goes on where it was open

    store.put(FILE, b"third" * 1000)
    store.faults = [Fault(status=403, media=True, every=3)]
    with pytest.raises(StoreError, match="refuses"):
        storage.local_copy(FILE)
    assert files() == [second]
    store.faults = []
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    with pytest.raises(DataError, match="name one with XDG_CACHE_HOME"):
        storage.local_copy(FILE)


def test_an_object_that_changes_while_it_is_copied_is_refused(store: ObjectStore, monkeypatch):
    monkeypatch.setattr(storage, "COPY_BYTES", 1000)
    store.latency_s = 0.02
    changing = threading.Timer(0.2, lambda: store.put(FILE, bytes(25_600)))
    changing.start()
    with pytest.raises(StoreError, match="found another version after it was copied"):
        storage.local_copy(FILE)
    changing.join()


def test_a_tokeniser_may_lie_in_a_store(store: ObjectStore):
    path = "gs://bucket/none.model"
    with pytest.raises(ValueError, match=f"vocab.path: found no readable file at '{path}'"):
        load_tokenizer(VocabConfig(tokenizer="sentencepiece", path=path))


@pytest.mark.parametrize(
    ("package", "address", "named"),
    [("fsspec", "gs://b/x", "fsspec"), ("gcsfs", "gs://b/x", "gcsfs"), ("s3fs", "s3://b/x", "client (Install s3fs to access S3)")],
)
def test_a_missing_client_is_named_with_what_to_install(package: str, address: str, named: str):
    program = f"import sys; sys.modules['{package}'] = None; from ofa_jax.data import storage; storage.exists('{address}')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    expected = f"{address}: found no {named}, expected it for {address.partition('b')[0]}; install requirements-stores.txt"
    assert expected in done.stderr
