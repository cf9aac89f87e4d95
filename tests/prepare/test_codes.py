"""The code stage: side shards that join a dataset's by index, resumed to the same bytes, and what is said of bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from ofa_jax.config.errors import DataError
from ofa_jax.data import storage
from ofa_jax.data.codes import CODES_FOLDERS, pack_codes, unpack_codes
from ofa_jax.data.example_message import Example
from ofa_jax.data.pictures import decode_picture
from ofa_jax.data.records import open_records
from ofa_jax.metrics.baselines import encode_patches
from ofa_jax.prepare import codes as stage
from ofa_jax.prepare.manifest import verify
from tests.data.object_store import Fault, ObjectStore

CENTERS = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
OPTIONS = stage.CodeOptions("some digest", num_codes=40, stride=4, image_px=64)
SPLITS = ("train", "validation", "test")


def encode(images: np.ndarray) -> np.ndarray:
    return np.stack([encode_patches(image, CENTERS) for image in images])


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A folder with one dataset, whose records hold no codes."""
    shutil.copytree(prepared / "easy_vqa", tmp_path / "easy_vqa")
    return tmp_path


def write(data: Path, encode=encode, options=OPTIONS, **more):
    return stage.write_codes(data, "easy_vqa", encode, options, batch=7, **{"progress": lambda _: None, **more})


def files(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data / "easy_vqa" / "codes").iterdir()}


def records(data: Path, split: str, *, codes: str | None):
    source = open_records(data, "easy_vqa", split, codes=codes)
    return source.read(range(len(source)))


def spoil(data: Path, split: str, place: int) -> None:
    """Replaces the picture of one record by bytes that are none."""
    folder = data / "easy_vqa"
    manifest = json.loads((folder / "manifest.json").read_text())
    (shard,) = manifest["splits"][split]["shards"]
    path = folder / shard["file"]
    held = open_records(data, "easy_vqa", split).read_bytes(range(shard["records"]))
    example = Example.FromString(held[place])
    example.features.feature["image"].bytes_list.value[0] = b"no picture"
    held[place] = example.SerializeToString()
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for one in held:
        writer.write(one)
    writer.close()
    shard["bytes"] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_packed_codes_come_back():
    for codes in (np.array([0, 5, 8191]), np.array([70_000, 1]), np.zeros(0, int)):
        found = unpack_codes(pack_codes(codes))
        assert found.dtype == np.int32 and found.tolist() == codes.tolist()
    assert unpack_codes(pack_codes(None)) is None
    assert len(pack_codes(np.zeros(256, int))) == 1 + 512
    for bad in (b"\x07\x00\x00", b"\x00\x01"):
        with pytest.raises(ValueError, match="expected packed codes"):
            unpack_codes(bad)


@pytest.mark.parametrize(("area", "grid"), [("central", 8), ("whole", 16)])
def test_every_record_has_the_codes_of_its_picture(data, area, grid):
    options = dataclasses.replace(OPTIONS, area=area)
    assert write(data, options=options)["pictures"] == sum(len(open_records(data, "easy_vqa", split)) for split in SPLITS)
    for split in SPLITS:
        plain = records(data, split, codes=None)
        for record, with_codes in zip(plain, records(data, split, codes=area), strict=True):
            assert record.codes is None and dataclasses.replace(with_codes, codes=None) == record
            picture = stage.area_of(decode_picture(record), options)
            assert with_codes.codes.tolist() == encode(picture[None]).ravel().tolist() and len(with_codes.codes) == grid**2
    assert verify(data / "easy_vqa" / CODES_FOLDERS[area]) == []


def test_the_centre_is_cut_from_the_resized_picture():
    pixels = np.random.default_rng(1).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    square = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(stage.area_of(pixels, OPTIONS), square[16:48, 16:48])
    np.testing.assert_array_equal(stage.area_of(pixels, dataclasses.replace(OPTIONS, area="whole")), square)


def test_an_interrupted_job_goes_on_to_the_same_bytes_and_encodes_no_finished_shard_again(data, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(data / "easy_vqa", whole / "easy_vqa")
    write(whole)
    manifest = json.loads((data / "easy_vqa" / "manifest.json").read_text())
    first = next(iter(manifest["splits"].values()))["records"]
    seen = 0

    def failing(images: np.ndarray) -> np.ndarray:
        nonlocal seen
        seen += len(images)
        if seen > first:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        write(data, failing)
    finished = {name: data for name, data in files(data).items() if name.startswith("codes-")}
    assert 0 < len(finished) < len(SPLITS) and "manifest.json" not in files(data)
    with pytest.raises(DataError, match="found no finished image codes"):
        open_records(data, "easy_vqa", "train", codes="central")
    said: list[str] = []
    again = write(data, progress=said.append)["pictures"]
    left = [split for split in SPLITS if not any(f"-{split}." in name for name in finished)]
    assert again == sum(len(open_records(data, "easy_vqa", split)) for split in left)
    assert f"going on, {len(finished)} of {len(SPLITS)} shards are there" in said[0]
    assert files(data) == files(whole)
    assert write(data)["pictures"] == 0


def test_codes_in_a_store_are_those_of_a_disk(data, tmp_path, monkeypatch):
    """Interrupted and gone on with, a picture without codes among them, while every seventh answer is an error."""
    monkeypatch.setattr(storage, "WAIT_S", 0.01)
    spoil(data, "validation", 1)
    there = "gs://bucket/data"
    with ObjectStore() as store:
        for name, value in (store.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        store.put_folder(data, there)
        write(data)
        store.faults = [Fault(status=503, every=7)]
        calls = iter(range(99))

        def failing(images: np.ndarray) -> np.ndarray:
            if next(calls) == 7:
                raise KeyboardInterrupt
            return encode(images)

        with pytest.raises(KeyboardInterrupt):
            stage.write_codes(there, "easy_vqa", failing, OPTIONS, batch=7, progress=lambda _: None)
        finished = [name for name in store.names(f"{there}/easy_vqa/codes") if name.startswith("codes-")]
        before = {name: store.generation(f"{there}/easy_vqa/codes/{name}") for name in finished}
        assert 0 < len(finished) < len(SPLITS)
        stage.write_codes(there, "easy_vqa", encode, OPTIONS, batch=7, progress=lambda _: None)
        assert {name: store.get(f"{there}/easy_vqa/codes/{name}") for name in store.names(f"{there}/easy_vqa/codes")} == files(data)
        assert {name: store.generation(f"{there}/easy_vqa/codes/{name}") for name in finished} == before
        found, expected = (
            open_records(there, "easy_vqa", "train", codes="central").read(range(3)),
            records(data, "train", codes="central")[:3],
        )
        assert [one.codes.tolist() for one in found] == [one.codes.tolist() for one in expected]
        with pytest.raises(DataError, match="vqgan: some digest there, another now"):
            stage.write_codes(there, "easy_vqa", encode, dataclasses.replace(OPTIONS, vqgan="another"), batch=7)
        assert store.faults[0].struck > 3


def test_hosts_share_the_shards_and_the_first_writes_the_manifest(data, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(data / "easy_vqa", whole / "easy_vqa")
    write(whole)
    waiting = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:  # two hosts that wait for each other at the start and at the end
        hosts = [pool.submit(write, data, host=h, num_hosts=2, wait_for_others=lambda _: waiting.wait(60)) for h in (0, 1)]
    counts = [host.result()["pictures"] for host in hosts]
    assert min(counts) > 0 and sum(counts) == sum(len(open_records(data, "easy_vqa", split)) for split in SPLITS)
    mine, alone = files(data), files(whole)
    assert mine.pop("without_codes_1.jsonl") == b"" and mine == alone


def test_a_picture_that_does_not_decode_has_no_codes_and_is_told(data):
    spoil(data, "validation", 1)
    write(data)
    read = records(data, "train", codes="central")
    assert all(record.codes is not None for record in read)
    source = open_records(data, "easy_vqa", "validation", codes="central")
    assert source[1].codes is None and source[0].codes is not None
    (line,) = (json.loads(text) for text in files(data)["without_codes_0.jsonl"].decode().splitlines())
    assert line["split"] == "validation" and line["field"] == "image" and "do not decode" in line["found"]
    assert json.loads(files(data)["manifest.json"])["without_codes"] == 1


def test_other_options_are_refused_and_rebuilt_only_when_asked(data):
    write(data)
    before = files(data)
    with pytest.raises(DataError, match="vqgan: some digest there, another now"):
        write(data, options=dataclasses.replace(OPTIONS, vqgan="another"))
    assert files(data) == before
    write(data, options=dataclasses.replace(OPTIONS, vqgan="another"), rebuild=True)
    assert json.loads(files(data)["manifest.json"])["vqgan"] == "another"


def test_codes_of_two_vqgans_do_not_meet_in_one_folder(data):
    """They are drawn by the one file vqgan.npz of the folder, which a rebuild of one dataset would replace for all."""
    shutil.copytree(data / "easy_vqa", data / "more")
    stage.write_codes(data, "more", encode, OPTIONS, batch=7, progress=lambda _: None)
    other = dataclasses.replace(OPTIONS, vqgan="another")
    for rebuild in (False, True):
        with pytest.raises(DataError, match="dataset more has codes of the VQGAN some digest"):
            write(data, options=other, rebuild=rebuild)
    assert not (data / "easy_vqa" / "codes").exists()


def test_records_with_codes_of_their_own_get_no_others(prepared, tmp_path):
    """They would not be read, and the folder's vqgan.npz would draw the old ones."""
    with pytest.raises(DataError, match="dataset scenes: found 32 codes in its records, expected none"):
        stage.check_one_vqgan(prepared, "scenes", "some digest")


def test_what_cannot_be_is_one_sentence(data, prepared):
    with pytest.raises(DataError, match="image_px: found 60, whose central area has 30 px, expected a multiple of 4"):
        write(data, options=dataclasses.replace(OPTIONS, image_px=60))
    with pytest.raises(DataError, match="found text records, expected image records"):
        stage.write_codes(prepared, "prose", encode, OPTIONS, batch=4)
    write(data)
    manifest = data / "easy_vqa" / "codes" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("easy_vqa-train", "easy_vqa-other"))
    with pytest.raises(DataError, match="found codes of other shards"):
        open_records(data, "easy_vqa", "train", codes="central")
    manifest.write_text(text)
    shard = next((data / "easy_vqa" / "codes").glob("codes-*train*"))
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(DataError, match="bytes as its manifest says"):
        open_records(data, "easy_vqa", "train", codes="central")


def test_a_code_outside_the_codebook_is_a_content_error(data):
    write(data, lambda images: encode(images) + 40)
    with pytest.raises(ValueError, match="field codes: found codes from"):
        records(data, "validation", codes="central")
