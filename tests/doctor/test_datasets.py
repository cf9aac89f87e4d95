"""What a run reads is opened before it starts; each thing that is missing is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from configs.quickstart import get_config
from ofa_jax.doctor.datasets import bytes_a_step, look
from ofa_jax.prepare import fixtures


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write(tmp_path_factory.mktemp("fixtures") / "data")


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def config(data: Path):
    found = get_config("debug")
    vocab = dataclasses.replace(found.vocab, path=str(data / "tokenizer.model"))
    return dataclasses.replace(found, vocab=vocab, data=dataclasses.replace(found.data, dir=str(data)))


def test_all_that_is_there(data: Path):
    material, found = look(config(data))
    assert [(one.check, one.status) for one in found] == [("tokenizer", "ok"), ("datasets", "ok")]
    assert {"tokenizer", "data/scenes"} <= set(material.identity) and material.records["scenes/train"] == 64
    assert all(Path(path).stat().st_size == size for path, size in material.shards)
    step_bytes = bytes_a_step(config(data), material)
    assert step_bytes is not None and step_bytes > 8 * min(material.row_bytes.values())


def test_each_thing_that_is_missing_is_named(data: Path):
    shutil.rmtree(data / "prose")
    (data / "tokenizer.model").unlink()
    manifest = json.loads((data / "easy_vqa" / "manifest.json").read_text())
    (data / "easy_vqa" / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    shard = next((data / "scenes").glob("scenes-train*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    material, found = look(config(data))
    assert {one.status for one in found} == {"FAIL"}
    said = " | ".join(one.text for one in found)
    for words in ("vocab.path", "has no dataset 'prose'", "field schema_version: found 99", f"{shard.name}: found"):
        assert words in said
    assert bytes_a_step(config(data), material) is None
