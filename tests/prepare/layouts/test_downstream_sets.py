"""The public sets of OFA's tasks through the real command: small files in their own layouts become records that are read back."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from ofa_jax.data.records import Caption, LabelledText, Question, load_json, open_records
from ofa_jax.prepare.sets import DOWNSTREAM, SETS
from tests.prepare.layouts.labelled_fixtures import write_gigaword, write_glue, write_snli_ve

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


def test_snli_ve(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        write_snli_ve(tmp_path / "raw", split=split)
    made = build("snli_ve", tmp_path / "raw", tmp_path / "data")
    assert set(made) == {"train", "validation", "test"}
    for records in made.values():
        assert [(one.record_id, one.captions) for one in records] == [
            ("9/0", (Caption("Two dogs run."),)),
            ("36979/0", (Caption("A man sleeps."),)),
            ("36979/1", (Caption("A man in bed."),)),
        ]
        assert records[0].questions == (Question("Animals run.", "entailment", kind="entailment"),)
        said = [(question.question, question.answer, question.kind) for question in records[1].questions]
        assert said == [("He is awake.", "contradiction", "entailment"), ("A person sleeps.", "entailment", "entailment")]
        assert records[0].image == (tmp_path / "raw" / "flickr30k-images" / "9.jpg").read_bytes()
    assert load_json(tmp_path / "data" / "snli_ve" / "manifest.json")["rejects"] == {"read/label": 3}
    line = json.loads((tmp_path / "data" / "snli_ve" / "rejects.jsonl").read_text().splitlines()[0])
    assert (line["record"], line["field"], line["found"]) == ("9/0", "questions[1].answer", "'-'")
    assert DOWNSTREAM["snli_ve"].layout(str(tmp_path), "snli_ve").picture_key("36979/1") == "flickr30k/36979"


def test_a_damaged_line_of_snli_ve_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_snli_ve(tmp_path)
    flags = [f"--source={tmp_path}", f"--data_dir={tmp_path / 'data'}", "--option=splits=train"]
    for line, found in (
        ('{"sentence1": ', "line 6: found b'{\"sentence1\": '"),
        ('{"sentence1": "a"}', "line 6: field Flickr30K_ID: found"),
    ):
        path = tmp_path / "snli_ve_train.jsonl"
        whole = path.read_text()
        path.write_text(whole + line + "\n")
        assert command()(["build", "snli_ve", *flags]) == 1
        assert found in capsys.readouterr().err
        path.write_text(whole)


def test_gigaword(tmp_path: Path) -> None:
    write_gigaword(tmp_path)
    made = build("gigaword", tmp_path, tmp_path / "data", "--option=lines_per_input=2")
    assert {split: len(records) for split, records in made.items()} == {"train": 5, "validation": 1, "test": 1}
    assert [record.record_id for record in made["train"]] == [f"train/{number}" for number in range(1, 6)]
    assert made["train"][4] == LabelledText("train/5", "gigaword", "the long article train 5 , of unk #.# words .", "", "headline train 5")
    assert made["validation"][0].answer == "headline dev 1"


def test_lines_of_gigaword_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gigaword(tmp_path)
    titles = tmp_path / "train.tgt.txt"
    titles.write_bytes(b"one\n\ncaf\xe9\nfour\nfive")  # no line feed at the end
    made = build("gigaword", tmp_path, tmp_path / "data")
    assert [record.answer for record in made["train"]] == ["one", "four", "five"]
    lines = [json.loads(line) for line in (tmp_path / "data" / "gigaword" / "rejects.jsonl").read_text().splitlines()]
    assert [(line["record"], line["reason"], line["field"]) for line in lines] == [
        ("train/2", "empty_text", "train.tgt.txt"),
        ("train/3", "schema", "train.tgt.txt"),
    ]
    titles.write_bytes(b"one\n")
    flags = [f"--source={tmp_path}", f"--data_dir={tmp_path / 'other'}"]
    assert command()(["build", "gigaword", *flags]) == 1
    assert "train.tgt.txt: found 1 lines, expected 5 as in train.src.txt" in capsys.readouterr().err
    titles.unlink()
    assert command()(["build", "gigaword", *flags]) == 1
    assert "found train.src.txt in" in capsys.readouterr().err
