"""The public sets of OFA's tasks through the real command: small files in their own layouts become records that are read back."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from ofa_jax.data.records import LabelledText, load_json, open_records
from ofa_jax.prepare.sets import DOWNSTREAM, SETS
from tests.prepare.layouts.labelled_fixtures import write_glue

ROOT = Path(__file__).parents[3]


def command() -> Any:
    spec = importlib.util.spec_from_file_location("prepare_command", ROOT / "launch" / "prepare.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def build(name: str, source: Path, data: Path, *flags: str) -> dict[str, list[Any]]:
    """Runs `launch/prepare.py build`, and `verify` over what it made; returns the records of every split."""
    assert command()(["build", name, f"--source={source}", f"--data_dir={data}", *flags]) == 0
    assert command()(["verify", f"--data_dir={data}"]) == 0
    dataset = next((flag.removeprefix("--dataset=") for flag in flags if flag.startswith("--dataset=")), name)
    splits = load_json(data / dataset / "manifest.json")["splits"]
    read = {split: open_records(data, dataset, split) for split in splits}
    return {split: [source[place] for place in range(len(source))] for split, source in read.items()}


def test_names_are_those_of_no_pretraining_set() -> None:
    assert not SETS.keys() & DOWNSTREAM.keys()


@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"])
def test_glue(task: str, tmp_path: Path) -> None:
    write_glue(tmp_path / "glue_data")
    made = build(task, tmp_path / "glue_data", tmp_path / "data")
    others = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert list(made) == ["train", *others] and [len(records) for records in made.values()] == [2, *[1] * len(others)]
    assert all(isinstance(record, LabelledText) and record.dataset == task for records in made.values() for record in records)
    if task == "sst2":
        assert made["train"][0] == LabelledText("train/1", "sst2", "hide new secretions", "", "negative")
        opened = tfds.builder_from_directory(str(tmp_path / "data" / "sst2")).as_data_source(split="validation")
        assert opened[0]["answer"] == b"positive" and opened[0]["text2"] == b""
        manifest = load_json(tmp_path / "data" / "sst2" / "manifest.json")
        assert (manifest["record"], manifest["schema_version"], manifest["rejects"]) == ("labelled_text", 2, {})


def test_a_text_that_comes_twice_stays(tmp_path: Path) -> None:
    write_glue(tmp_path / "glue_data")
    dev = tmp_path / "glue_data" / "SST-2" / "dev.tsv"
    dev.write_text(dev.read_text() + "a charming film\t1\n")
    made = build("sst2", tmp_path / "glue_data", tmp_path / "data")
    assert [record.record_id for record in made["validation"]] == ["validation/1", "validation/2"]
