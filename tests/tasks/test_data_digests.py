"""What a run remembers of its data."""

import dataclasses
import json

from ofa_jax.config.schema import BlockConfig, DataConfig, SourceConfig
from ofa_jax.tasks.training_data import data_digests


def write(folder, *, sha256="a", options="o", **more):
    folder.mkdir(parents=True, exist_ok=True)
    split = {"records": 1, "shards": [{"file": "f", "records": 1, "bytes": 1, "sha256": sha256}]}
    manifest = {"schema_version": 2, "options_hash": options, "splits": {"train": split, "other": split}, **more}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_data_is_known_by_its_manifests(tmp_path):
    lines = (SourceConfig("d", "caption"), SourceConfig("missing", "caption"))
    data = DataConfig(dir=str(tmp_path), blocks=(BlockConfig("a", "pairs", 8, 10, 6, lines),))
    write(tmp_path / "d")
    first = data_digests(data)
    assert list(first) == ["data/d"]  # opening the other one says what is wrong
    write(tmp_path / "d", notes=["said differently"])
    assert data_digests(data) == first
    write(tmp_path / "d", sha256="b")
    other_bytes = data_digests(data)
    write(tmp_path / "d", options="p")
    assert len({first["data/d"], other_bytes["data/d"], data_digests(data)["data/d"]}) == 3


def test_image_codes_are_part_of_the_data_of_a_run_that_reads_them(tmp_path):
    lines = (SourceConfig("d", "image_infilling"),)
    data = DataConfig(dir=str(tmp_path), blocks=(BlockConfig("a", "images", 8, 10, 65, lines),))
    write(tmp_path / "d")
    write(tmp_path / "d" / "codes")
    first = data_digests(data)
    write(tmp_path / "d" / "codes", sha256="b")
    assert data_digests(data) != first
    captions = dataclasses.replace(data, blocks=(BlockConfig("a", "pairs", 8, 10, 6, (SourceConfig("d", "caption"),)),))
    before = data_digests(captions)
    write(tmp_path / "d" / "codes", sha256="c")
    assert data_digests(captions) == before
