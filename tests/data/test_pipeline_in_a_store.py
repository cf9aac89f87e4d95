"""The pipeline on shards in a store: batches equal to those from a local folder, whatever the store does in between."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.quickstart import get_config
from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import RunConfig
from ofa_jax.data import storage
from ofa_jax.data.batch import Batch
from ofa_jax.data.codes import CODES_FOLDERS, CODES_SCHEMA_VERSION, pack_codes
from ofa_jax.data.pipeline import Pipeline
from ofa_jax.data.records import open_records
from ofa_jax.eval.codec import load_codec
from ofa_jax.prepare import fixtures
from ofa_jax.prepare.manifest import write_json
from ofa_jax.tasks.negatives import load_negatives
from ofa_jax.tasks.training_data import training_pipeline
from tests.data.object_store import Fault, ObjectStore
from tests.data.test_remote_shards import write

ADDRESS = "gs://bucket/prepared"
TRAIN = "scenes/scenes-train.array_record-00000-of-00001"
STEPS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write(tmp_path_factory.mktemp("fixtures") / "data")


@pytest.fixture
def store(folder: Path, monkeypatch, tmp_path: Path) -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        for name, value in (store.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "WAIT_S", 0.01)
        store.put_folder(folder, ADDRESS)
        yield store


def config_of(folder: str | Path, num_workers: int = 0) -> RunConfig:
    """The quickstart's debug run, six rows a block; its tokeniser lies in the data's folder too."""
    config = get_config("debug")
    blocks = tuple(dataclasses.replace(block, rows=6) for block in config.data.blocks)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(folder), blocks=blocks, num_workers=num_workers),
        vocab=dataclasses.replace(config.vocab, path=f"{folder}/tokenizer.model"),
    )


def pipeline_of(folder: str | Path, num_workers: int = 0) -> Pipeline:
    return training_pipeline(config_of(folder, num_workers))[0]


def batches(pipeline: Pipeline) -> list[Batch]:
    with pipeline.iterate(0) as iterator:
        return [next(iterator) for _ in range(STEPS)]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Batch]:
    return batches(pipeline_of(folder))


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.data_step == other.data_step and one.rejects == other.rejects and one.blocks.keys() == other.blocks.keys()
        for name, block in one.blocks.items():
            for field, values in block._asdict().items():
                np.testing.assert_array_equal(values, getattr(other.blocks[name], field), err_msg=f"{name}/{field}")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_from_a_store_are_those_from_a_folder(store: ObjectStore, expected: list[Batch], num_workers: int):
    assert_equal(batches(pipeline_of(ADDRESS, num_workers)), expected)


def test_what_lies_beside_the_records_is_read_too(store: ObjectStore, folder: Path):
    assert load_negatives(ADDRESS, "scenes") == load_negatives(folder, "scenes") and load_negatives(ADDRESS, "scenes").captions
    assert load_codec(ADDRESS).description == load_codec(folder).description
    store.remove(f"{ADDRESS}/codebook.npz")
    store.remove(f"{ADDRESS}/scenes/negatives.json")
    assert load_codec(ADDRESS) is None and not load_negatives(ADDRESS, "scenes").captions


@pytest.mark.parametrize(
    "fault",
    [Fault(status=503, every=5), Fault(reset=True, every=4, media=True), Fault(stall_s=60, every=7, times=2, media=True)],
    ids=["503", "reset", "stall"],
)
def test_batches_are_equal_though_the_store_fails_at_times(store: ObjectStore, expected: list[Batch], fault: Fault, monkeypatch):
    monkeypatch.setattr(storage, "DEADLINE_S", 1.0)
    store.faults = [fault]
    began = time.monotonic()
    assert_equal(batches(pipeline_of(ADDRESS)), expected)
    assert fault.struck >= 2 and time.monotonic() - began < 30


def test_a_store_that_goes_away_stops_the_run_with_one_sentence(store: ObjectStore):
    pipeline = pipeline_of(ADDRESS)
    pipeline.batch(0)
    store.requests.clear()
    store.faults = [Fault(status=503, of=TRAIN)]
    with pytest.raises(DataError) as caught:
        pipeline.batch(1)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"reading dataset scenes split train: {ADDRESS}/{TRAIN}: the store failed 8 times"), caught.value
    asked = [request for request in store.requests if request.place.endswith(TRAIN)]
    assert len(asked) == storage.TRIES * len({request.range for request in asked})  # and not that many times three
    with pytest.raises(DataError, match="opening dataset scenes split train: .*the store refuses it"):
        store.faults = []
        pipeline = pipeline_of(ADDRESS)
        store.faults = [Fault(status=403, of="prepared/scenes")]
        pipeline.batch(0)


def test_faults_of_shards_are_named(store: ObjectStore):
    whole = store.get(f"{ADDRESS}/{TRAIN}")
    address = f"{ADDRESS}/{TRAIN}"
    pipeline = pipeline_of(ADDRESS)
    pipeline._open()
    store.remove(address)
    with pytest.raises(DataError, match=f"reading dataset scenes split train: {address}: the shard is gone"):
        pipeline.batch(0)
    with pytest.raises(DataError, match=f"{address}: found no file, expected {len(whole)} bytes as its manifest says"):
        open_records(ADDRESS, "scenes", "train")
    store.put(address, whole[:-100])
    with pytest.raises(DataError, match=f"{address}: found {len(whole) - 100} bytes, expected {len(whole)}"):
        open_records(ADDRESS, "scenes", "train")
    with pytest.raises(DataError, match=f"reading dataset scenes split train failed 3 times, .*{address}"):
        store.put(address, whole[: len(whole) // 2])
        pipeline.batch(0)
    store.put(address, whole)
    records = open_records(ADDRESS, "scenes", "train")
    records.read_bytes([0])
    store.put(address, whole[:70_000] + bytes(60_000) + whole[130_000:])  # behind the index that was read
    with pytest.raises(OSError, match=rf"{address}: record \d+ cannot be read") as caught:
        records.read_bytes(list(range(len(records))))
    damaged = int(str(caught.value).split("record ")[1].split()[0])
    assert 0 < damaged < len(records) and records.read_bytes([damaged - 1])


def test_missing_data_is_told_as_for_a_folder(store: ObjectStore, folder: Path):
    for place in (str(folder), ADDRESS):
        with pytest.raises(DataError, match=rf"data directory {place} has no dataset 'vqa' \(it has: easy_vqa, prose, scenes\)"):
            open_records(place, "vqa", "train")
        with pytest.raises(DataError, match=f"dataset 'scenes' in {place} has no split 'later'; it has: train"):
            open_records(place, "scenes", "later")
        with pytest.raises(DataError, match=f"data directory {place}/none does not exist"):
            open_records(f"{place}/none", "scenes", "train")
        with pytest.raises(DataError, match=f"{place}/prose/codes/manifest.json is missing"):
            open_records(place, "prose", "train", codes="central")


def test_side_shards_and_token_lengths_come_from_a_store(store: ObjectStore, folder: Path, tmp_path: Path):
    manifest = json.loads((folder / "easy_vqa" / "manifest.json").read_text())
    records = len(open_records(folder, "easy_vqa", "train"))
    data = store_copy(store, tmp_path / "data")
    codes = data / "easy_vqa" / CODES_FOLDERS["central"]
    codes.mkdir()
    [shard] = manifest["splits"]["train"]["shards"]
    written = write(codes / shard["file"], [pack_codes(np.array([place % 32, 1, 2, 3])) for place in range(records)])
    part = {"file": shard["file"], "of": shard["file"], "records": records, "bytes": written.stat().st_size}
    write_json(
        codes / "manifest.json",
        {"schema_version": CODES_SCHEMA_VERSION, "area": "central", "num_codes": 32, "splits": {"train": {"shards": [part]}}},
    )
    lengths = np.random.default_rng(0).integers(1, 99, (records, 1, 2)).astype(np.uint16)
    np.save(data / "easy_vqa" / "lengths-train.npy", lengths)
    write_json(data / "easy_vqa" / "manifest.json", manifest | {"row": "question"})
    store.put_folder(data, "gs://other/data")

    found = open_records("gs://other/data", "easy_vqa", "train", codes="central")
    np.testing.assert_array_equal(found.sequence_lengths("question"), lengths)
    assert [record.codes.tolist() for record in found.read([5, 0, 33])] == [[5, 1, 2, 3], [0, 1, 2, 3], [1, 1, 2, 3]]
    with pytest.raises(DataError, match="found those of row kind question"):
        found.sequence_lengths("caption")
    with pytest.raises(DataError, match="token lengths of question rows: found none"):
        open_records(ADDRESS, "easy_vqa", "train").sequence_lengths("question")


def store_copy(store: ObjectStore, folder: Path) -> Path:
    store.fetch_folder(ADDRESS, folder)
    return folder
