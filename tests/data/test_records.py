from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ofa_jax.config.errors import DataError
from ofa_jax.data import records
from ofa_jax.data.example_message import Example
from ofa_jax.data.examples import serialize
from ofa_jax.data.records import Box, ImageRecord, LabelledText, RecordError, TextRecord, open_records, parse_record
from ofa_jax.prepare import fixtures


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write(tmp_path_factory.mktemp("fixtures") / "data")


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def picture(**changes: Any) -> Any:
    """An Example of a good record with columns replaced (a list), or left out (None)."""
    values: dict[str, Any] = {
        "record_id": [b"a/1"], "image": [b"png"], "width": [64], "height": [32],
        "captions/text": [b"a cat left of a dog", b"two pets"], "captions/objects": [b"cat&&dog", b""],
        "regions/text": [b"the cat"], "regions/box": [1.0, 2.0, 30.0, 32.0],
        "questions/question": [b"what?", b"who?"], "questions/answer": [b"cat", b"a dog"], "questions/confidence": [0.5, 1.0],
        "questions/kind": [b"other", b"who"], "questions/question_id": [393226000, -1], "questions/num_answers": [4, 0],
        "answers/text": [b"cat", b"Cat.", b"", b"a cat"],
        "objects/label": [b"cat", b"dog"], "objects/box": [0.0, 0.0, 8.0, 8.0, 8.0, 8.0, 64.0, 32.0],
        "codes": [0, 1, 2, 31],
    }  # fmt: skip
    values |= {name.replace("__", "/"): value for name, value in changes.items()}
    example = Example()
    for name, column in values.items():
        if column is None:
            continue
        kind = "bytes_list" if records.COLUMNS["image"][name] in ("text", "image") else None
        kind = kind or ("float_list" if records.COLUMNS["image"][name] in ("float", "box") else "int64_list")
        getattr(example.features.feature[name], kind).value.extend(column)
    return example


def parse(example: Any) -> Any:
    return parse_record(example.SerializeToString(), kind="image", dataset="pets", record="train#7", num_codes=32)


def test_a_record_is_read_with_every_annotation() -> None:
    record = parse(picture())
    assert record.captions[0] == records.Caption("a cat left of a dog", ("cat", "dog")) and record.captions[1].objects == ()
    assert record.regions == (records.Region("the cat", Box(1, 2, 30, 32)),)
    assert record.questions == (
        records.Question("what?", "cat", 0.5, "other", 393226000, ("cat", "Cat.", "", "a cat")),
        records.Question("who?", "a dog", 1.0, "who", records.NO_ID, ()),
    )
    later = parse(picture(questions__num_answers=[1, 3], questions__question_id=[0, 1 << 40])).questions
    assert [q.answers for q in later] == [("cat",), ("Cat.", "", "a cat")] and [q.question_id for q in later] == [0, 1 << 40]
    assert [item.label for item in record.objects] == ["cat", "dog"] and record.objects[1].box == Box(8, 8, 64, 32)
    assert record.codes.dtype == np.int32 and record.codes.tolist() == [0, 1, 2, 31]
    assert parse(picture(codes=[])).codes is None


TARGETS = {"targets__text": [b"cat", b"a cat", b"dog"], "targets__weight": [0.5, 0.25, 1.0], "questions__num_targets": [2, 1]}


def test_targets_and_objects_of_questions_and_shards_from_before_them() -> None:
    first, second = parse(picture(**TARGETS, questions__objects=[b"", b"sky&&tall house"])).questions
    assert first.targets == (("cat", 0.5), ("a cat", 0.25)) and first.targets[0].weight == 0.5 and first.objects == ()
    assert second.targets == (("dog", 1.0),) and second.objects == ("sky", "tall house")
    assert all(question.targets == question.objects == () for question in parse(picture()).questions), "columns that are not there"
    question = records.Question("what?", "cat", 0.5, targets=first.targets, objects=("sky", "tall house"))
    record = ImageRecord("a/1", "pets", b"png", 64, 32, questions=(question, records.Question("who?", "dog")))
    read = parse_record(serialize(record), kind="image", dataset="pets", record="train#7", num_codes=32)
    assert read == record


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"image": None}, "schema", "image"),
        ({"width": [1, 2]}, "schema", "width"),
        ({"width": [0]}, "schema", "width"),
        ({"objects__label": [b"cat"]}, "schema", "objects"),
        ({"regions__box": [1.0, 2.0, 3.0]}, "schema", "regions/box"),
        ({"captions__text": [b"\xff", b"x"]}, "schema", "captions/text"),
        ({"codes": [1, 2, 3]}, "schema", "codes"),
        ({"captions__text": [b" ", b"x"]}, "empty_text", "captions/text"),
        ({"questions__answer": [b"", b"x"]}, "empty_text", "questions/answer"),
        ({"questions__question_id": [7]}, "schema", "questions"),
        ({"questions__question_id": [7, -2]}, "question_id", "questions/question_id"),
        ({"questions__question_id": None}, "schema", "questions/question_id"),
        ({"questions__num_answers": [4, 1]}, "schema", "questions/num_answers"),
        ({**TARGETS, "questions__num_targets": [2, 2]}, "schema", "targets"),
        ({**TARGETS, "questions__num_targets": [4, -1]}, "schema", "targets"),
        ({**TARGETS, "targets__weight": [0.5]}, "schema", "targets"),
        ({**TARGETS, "targets__weight": [0.5, 0.0, 1.0]}, "confidence", "targets/weight"),
        ({**TARGETS, "targets__text": [b"cat", b" ", b"dog"]}, "empty_text", "targets/text"),
        ({"questions__objects": [b"sky"]}, "schema", "questions"),
        ({"questions__num_answers": [5, -1]}, "schema", "questions/num_answers"),
        ({"answers__text": [b"cat", b"\xff", b"", b"a cat"]}, "schema", "answers/text"),
        ({"regions__box": [1.0, 2.0, 65.0, 30.0]}, "box_outside", "regions/box"),
        ({"regions__box": [5.0, 2.0, 5.0, 30.0]}, "box_outside", "regions/box"),
        ({"regions__box": [float("nan"), 2.0, 5.0, 30.0]}, "box_outside", "regions/box"),
        ({"objects__box": [-1.0, 0.0, 8.0, 8.0, 8.0, 8.0, 64.0, 32.0]}, "box_outside", "objects/box"),
        ({"questions__confidence": [0.0, 1.0]}, "confidence", "questions/confidence"),
        ({"questions__confidence": [1.5, 1.0]}, "confidence", "questions/confidence"),
        ({"questions__confidence": [float("nan"), 1.0]}, "confidence", "questions/confidence"),
        ({"codes": [0, 1, 2, 32]}, "token_range", "codes"),
        ({"codes": [0, 1, 2, -1]}, "token_range", "codes"),
    ],
)
def test_content_errors_name_record_field_found_and_expected(changes: dict[str, Any], reason: str, field: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse(picture(**changes))
    error = caught.value
    assert (error.reason, error.field, error.dataset) == (reason, field, "pets")
    assert error.record == ("train#7" if None in changes.values() else "a/1")
    assert "found" in str(error) and "expected" in str(error) and "\n" not in str(error)


def test_bytes_that_are_no_example_are_a_schema_error() -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(b"\xff\xff\xff", kind="image", dataset="pets", record="train#7", num_codes=32)
    assert (caught.value.reason, caught.value.record) == ("schema", "train#7")


def test_reads_agree_in_any_order_and_number(prepared: Path) -> None:
    source = open_records(prepared, "scenes", "train")
    one_by_one = [source[i].record_id for i in range(len(source))]
    assert len(set(one_by_one)) == len(source) == 64
    order = np.random.default_rng(0).permutation(len(source))
    assert [record.record_id for record in source.read(order)] == [one_by_one[i] for i in order]
    assert source.read([]) == []
    with pytest.raises(IndexError):
        source[len(source)]


def test_several_shards_read_as_one(copied: Path) -> None:
    manifest_path = copied / "prose" / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    once = open_records(copied, "prose", "train")
    whole = [record.record_id for record in once.read(range(len(once)))]
    manifest["splits"]["train"]["shards"] *= 2
    manifest_path.write_text(json.dumps(manifest))
    twice = open_records(copied, "prose", "train")
    order = np.random.default_rng(0).permutation(len(twice))
    assert [r.record_id for r in twice.read(order)] == [(whole * 2)[i] for i in order]


def test_tfds_opens_the_same_directory(prepared: Path) -> None:
    source = open_records(prepared, "scenes", "validation")
    theirs = tfds.builder_from_directory(str(prepared / "scenes")).as_data_source(
        "validation", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert len(theirs) == len(source)
    for i in range(len(source)):
        ours, raw = source[i], theirs[i]
        assert isinstance(ours, ImageRecord) and raw["record_id"].decode() == ours.record_id and raw["image"] == ours.image
        assert [text.decode() for text in raw["captions"]["text"]] == [caption.text for caption in ours.captions]
        np.testing.assert_array_equal(np.array(raw["objects"]["box"]), [item.box for item in ours.objects])
        assert list(raw["questions"]["question_id"]) == [question.question_id for question in ours.questions]
        np.testing.assert_array_equal(raw["codes"], ours.codes)


def _first_id(source: records.RecordSource) -> str:
    return source[0].record_id


def test_a_source_pickles_and_survives_a_fork(prepared: Path) -> None:
    source = open_records(prepared, "prose", "train")
    first = source[0]
    assert isinstance(first, TextRecord)
    assert pickle.loads(pickle.dumps(source))[0] == first
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_first_id, (source,)) == first.record_id
    source._pid = -1  # what a forked child sees
    assert source[0] == first


def _without_shard(data: Path) -> None:
    next((data / "scenes").glob("*train*")).unlink()


def _cut_shard(data: Path) -> None:
    path = next((data / "scenes").glob("*train*"))
    path.write_bytes(path.read_bytes()[:-100])


def _old_schema(data: Path) -> None:
    path = data / "scenes" / "manifest.json"
    now = f'"schema_version": {records.SCHEMA_VERSION}'
    assert now in path.read_text()
    path.write_text(path.read_text().replace(now, '"schema_version": 1'))


def _broken_manifest(data: Path) -> None:
    (data / "scenes" / "manifest.json").write_text("{")


def _no_manifest(data: Path) -> None:
    (data / "scenes" / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [_without_shard, _cut_shard, _old_schema, _broken_manifest, _no_manifest])
def test_damaged_data_is_one_sentence_with_what_to_run(copied: Path, damage: Callable[[Path], None]) -> None:
    damage(copied)
    with pytest.raises(DataError, match="launch/prepare.py") as caught:
        open_records(copied, "scenes", "train")
    assert "\n" not in str(caught.value)
    if damage is _old_schema:
        assert "manifest.json: field schema_version: found 1, expected 2; prepare it again with --rebuild" in str(caught.value)


def test_missing_data_is_named(prepared: Path) -> None:
    with pytest.raises(DataError, match="does not exist.*launch/prepare.py"):
        open_records(prepared / "nowhere", "scenes", "train")
    with pytest.raises(DataError, match="no dataset 'coco'.*easy_vqa, prose, scenes"):
        open_records(prepared, "coco", "train")
    with pytest.raises(DataError, match="no split 'test'.*train, validation"):
        open_records(prepared, "scenes", "test")


def test_unreadable_bytes_are_an_io_error(copied: Path) -> None:
    source = open_records(copied, "prose", "train")
    path = next((copied / "prose").glob("*train*"))
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(OSError, match="prose-train"):
        source[0]
    source = open_records(copied, "prose", "validation")
    next((copied / "prose").glob("*validation*")).unlink()
    with pytest.raises(OSError, match="gone"):
        source[0]


def test_labelled_texts_are_read_as_they_were_written() -> None:
    for text2 in ("a second one", ""):
        record = LabelledText("train/1", "rte", "a text", text2, "entailment")
        assert parse_record(serialize(record), kind="labelled_text", dataset="rte", record="train#0", num_codes=0) == record
    text = TextRecord("train/1", "rte", "a text")
    with pytest.raises(RecordError, match=r"rte record train#0: field text2: found no such field, expected a text field"):
        parse_record(serialize(text), kind="labelled_text", dataset="rte", record="train#0", num_codes=0)
    assert parse_record(serialize(record), kind="text", dataset="rte", record="train#0", num_codes=0) == text
    for changed in ({"text": " "}, {"answer": ""}):
        with pytest.raises(RecordError, match=rf"rte record train/1: field {next(iter(changed))}: found '.?', expected at least one word"):
            parse_record(
                serialize(LabelledText(**{**vars(record), **changed})), kind="labelled_text", dataset="rte", record="train#0", num_codes=0
            )
