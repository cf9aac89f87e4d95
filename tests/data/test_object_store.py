"""The store that tests use instead of Google's: gcsfs and epath work against it, and its faults are what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from etils import epath

from tests.data.object_store import Fault, ObjectStore


@pytest.fixture
def store(monkeypatch) -> Iterator[ObjectStore]:
    with ObjectStore(page_size=3) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.fixture
def files(store: ObjectStore) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("gs", token="anon", use_listings_cache=False, skip_instance_cache=True)


def test_what_gcsfs_writes_is_what_it_reads_lists_and_removes(store: ObjectStore, files):
    files.mkdir("bucket")
    small = {f"bucket/d/f{number}": bytes([number]) * number for number in range(8)}
    files.pipe(small)
    large = os.urandom(700_000)
    with files.open("bucket/large", "wb", block_size=2**18) as file:  # three parts
        file.write(large)
    assert files.cat("bucket/large") == large == store.get("gs://bucket/large")
    assert files.cat_ranges(["bucket/large", "bucket/d/f7"], [699_990, 1], [800_000, 3]) == [large[699_990:], b"\7\7"]
    assert files.cat_file("bucket/large", start=-5) == large[-5:]
    assert files.find("bucket") == [*sorted(small), "bucket/large"]
    assert files.ls("bucket") == ["bucket/d", "bucket/large"]
    assert {path: found["size"] for path, found in files.find("bucket/d", detail=True).items()} == {p: len(d) for p, d in small.items()}
    files.mv("bucket/d/f3", "bucket/moved")
    files.cp("bucket/moved", "bucket/copied")
    assert files.cat("bucket/copied") == small["bucket/d/f3"]
    files.rm("bucket/d", recursive=True)
    assert store.names("gs://bucket") == ["copied", "large", "moved"]
    with pytest.raises(FileExistsError):
        files.pipe("bucket/moved", b"", mode="create")
    with pytest.raises(FileNotFoundError):
        files.cat("bucket/d/f1")


def test_epath_and_other_processes_come_here_too(store: ObjectStore, tmp_path: Path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "note.txt").write_text("words")
    store.put_folder(tmp_path / "in", "gs://bucket/data")
    program = (
        "from etils import epath; p = epath.Path('gs://bucket/data/deep'); (p / 'more.txt').write_text((p / 'note.txt').read_text() * 2); "
        "print(p.is_dir(), (p / 'none').exists(), sorted(x.name for x in p.iterdir()))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | store.environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False ['more.txt', 'note.txt']"
    assert epath.Path("gs://bucket/data/deep/more.txt").name == "more.txt"
    store.fetch_folder("gs://bucket/data", tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "more.txt").read_text() == "wordswords"


def test_faults_strike_as_often_as_they_say(store: ObjectStore, files):
    data = os.urandom(200_000)
    store.put("gs://bucket/file", data)
    store.put("gs://bucket/other", b"123")
    for fault in (Fault(status=503, every=2, of="file"), Fault(reset=True, times=1, media=True), Fault(stall_s=0.3, times=1)):
        store.faults = [fault]
        assert [files.cat("bucket/file"), files.cat("bucket/other"), files.cat("bucket/file")] == [data, b"123", data]
        assert fault.struck == 1, fault
    store.faults = [Fault(status=403, of="file")]
    with pytest.raises(OSError, match="Forbidden"):
        files.cat("bucket/file")
    assert files.cat("bucket/other") == b"123"
    store.faults = []
    store.remove("gs://bucket/other")
    with pytest.raises(FileNotFoundError):
        files.cat("bucket/other")
