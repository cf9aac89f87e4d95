from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Question
from ofa_jax.prepare.layouts.gqa import Gqa
from tests.prepare.layouts.annotated_fixtures import edit_json, read_all, write_gqa


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_gqa(tmp_path / "gqa")
    return tmp_path / "gqa"


def test_questions_by_picture(source: Path, tmp_path: Path) -> None:
    layout = Gqa(str(source), "gqa_test")
    records, errors, lines = read_all(layout, tmp_path / "g")
    assert errors == [] and lines == ["gqa_test: 4 questions of 3 pictures"]
    assert [(record.record_id, record.questions) for record in records] == [
        ("15", (Question("Which side is it on?", "left", kind="relS", question_id=7333408),)),
        (
            "2370799",
            (
                Question("Is the sky dark?", "yes", kind="verifyAttr", question_id=2930152),
                Question("What is it made of?", "wood", kind="material", question_id=7333409),
            ),
        ),
        ("n5", (Question("What color is it?", "red", kind="color", question_id=201307251),)),
    ]
    assert [layout.picture_key(record.record_id) for record in records] == ["visual_genome/15", "visual_genome/2370799", "gqa/n5"]


def test_an_official_folder_and_a_missing_picture(source: Path, tmp_path: Path) -> None:
    (source / "questions1.2").mkdir()
    (source / "train_balanced_questions.json").rename(source / "questions1.2" / "train_balanced_questions.json")
    (source / "images" / "n5.jpg").unlink()
    records, errors, _ = read_all(Gqa(str(source), "gqa_test"), tmp_path / "g")
    assert len(records) == 2
    picture = source / "images" / "n5.jpg"
    assert [str(error) for error in errors] == [f"gqa_test record n5: field image: found no such file, expected the picture {picture}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["02930152"].pop("imageId"), "question 02930152: field imageId: found no such field in .* expected a text"),
        (lambda c: c["02930152"].update(imageId=2370799), "question 02930152: field imageId: found 2370799 in .* expected a text"),
        (lambda c: c["02930152"].update(types={}), "question 02930152: types: field detailed: found no such field in {}"),
        (lambda c: c.update({"2930152": c["02930152"]}), "found the question id 2930152 twice, expected every id once"),
        (lambda c: c.update({"x1": c["02930152"]}), "found the question id 'x1', expected digits"),
        (lambda c: c.update({"5": []}), r"question 5: found \[\], expected an object with types"),
    ],
)
def test_files_that_do_not_fit_are_named(change: Any, message: str, source: Path, tmp_path: Path) -> None:
    path = source / "train_balanced_questions.json"
    edit_json(path, change)
    with pytest.raises(DataError, match=message) as error:
        read_all(Gqa(str(source), "gqa_test"), tmp_path / "g")
    assert str(error.value).startswith(str(path))


def test_a_file_without_questions(source: Path, tmp_path: Path) -> None:
    (source / "train_balanced_questions.json").write_text("{}")
    with pytest.raises(DataError, match="gqa_test: found no picture of Gqa.* expected at least one"):
        read_all(Gqa(str(source), "gqa_test"), tmp_path / "g")
    with pytest.raises(DataError, match="d: option split: found 'test', did you mean testdev?"):
        Gqa("s", "d", split="test")
