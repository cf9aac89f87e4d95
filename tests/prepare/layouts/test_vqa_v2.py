from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import ImageRecord, Question, WeightedAnswer
from ofa_jax.prepare.layouts.vqa_v2 import VqaV2
from tests.prepare.layouts.annotated_fixtures import edit_json, read_all, write_picture, write_vqa_v2

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_vqa_v2(tmp_path / "vqa")
    return tmp_path / "vqa"


def vqa(source: Path, **options: Any) -> VqaV2:
    return VqaV2(str(source), "vqa_test", **options)


def test_questions_with_ten_answers_and_the_weight_of_the_best(source: Path, tmp_path: Path) -> None:
    records, errors, lines = read_all(vqa(source), tmp_path / "g")
    left_out = "0 of 3 questions left out, as none of their answers is of the 2 allowed, and 15 answers of the others"
    assert errors == [] and lines == [f"vqa_test: {left_out}; 0 of 2 pictures keep no question"]
    assert [record.record_id for record in records] == ["9", "25"]
    assert records[0].questions == (Question("Is it a bird?", "yes", 1.0, "is it a", 9000, ("yes",) * 9 + ("no",)),)
    first, second = records[1].questions
    assert first == Question("How many birds?", "2", 0.9, "how many", 25001, ("3", "2", "2", "2", "3", "4", "5", "6", "7", "8"))
    assert (second.answer, second.confidence, second.question_id, second.kind) == ("yes", 0.6, 25000, "is it")
    assert records[1].image == (source / "train2014" / "COCO_train2014_000000000025.jpg").read_bytes()
    assert vqa(source).picture_key("25") == "coco/25"


def test_every_answer_has_its_weight(source: Path, tmp_path: Path) -> None:
    records, errors, lines = read_all(vqa(source, num_answers=0), tmp_path / "g")
    assert errors == [] and lines == []
    assert records[0].questions[0].targets == (WeightedAnswer("yes", 1.0), WeightedAnswer("no", 0.3))
    number, colour = records[1].questions
    assert number.targets == (("3", 0.6), ("2", 0.9), *((answer, 0.3) for answer in "45678"))
    assert (number.answer, number.confidence) == ("2", 0.9)
    assert [answer for answer, _ in colour.targets] == ["no", "yes", "maybe", "red", "no?", "i", "do", "not", "know"]


def test_answers_outside_of_the_closed_set_are_left_out_and_counted(source: Path, tmp_path: Path) -> None:
    (source / "answers.txt").write_text("no\nmaybe\n3\n")
    records, errors, lines = read_all(vqa(source, answers_file="answers.txt"), tmp_path / "g")
    assert errors == [] and [len(record.questions) for record in records] == [1, 2]
    (bird,), (number, colour) = (record.questions for record in records)
    assert (bird.answer, bird.confidence, bird.targets) == ("no", 0.3, ()) and bird.answers == ("yes",) * 9 + ("no",), (
        "what people said stays"
    )
    assert (number.answer, number.confidence, number.targets) == ("3", 0.6, ())
    assert colour.answer == "no" and colour.targets == (WeightedAnswer("no", 0.3), WeightedAnswer("maybe", 0.3)), "the first of equals"
    left_out = "0 of 3 questions left out, as none of their answers is of the 3 allowed, and 14 answers of the others"
    assert lines == [f"vqa_test: {left_out}; 0 of 2 pictures keep no question"]
    assert json.loads((tmp_path / "g" / "left_out.json").read_text()) == {"train": {"questions": 0, "answers": 14, "pictures": 0}}


def test_an_answer_without_words_is_none(source: Path, tmp_path: Path) -> None:
    def empty(content: Any) -> None:
        for answer in content["annotations"][0]["answers"][1:]:
            answer["answer"] = " "

    edit_json(source / ANNOTATIONS, empty)
    records, errors, _ = read_all(vqa(source, num_answers=0), tmp_path / "g")
    assert errors == [] and (records[0].questions[0].answer, records[0].questions[0].confidence) == ("yes", 0.3)


def many_pictures(source: Path, count: int) -> None:
    """Validation with `count` pictures of three questions each."""
    for file, key in ((QUESTIONS, "questions"), (ANNOTATIONS, "annotations")):
        content = json.loads((source / file).read_text())
        rows = [
            {**row, "image_id": 100 + number, "question_id": row["question_id"] + 100_000 * (number + 1)}
            for number in range(count)
            for row in content[key]
        ]
        (source / file.replace("train", "val")).write_text(json.dumps({**content, key: rows}))
    for number in range(count):
        write_picture(source / "val2014" / f"COCO_val2014_{100 + number:012d}.jpg", seed=number)


def test_the_rest_of_validation_joins_train_by_whole_pictures(source: Path, tmp_path: Path) -> None:
    many_pictures(source, 12)
    layout = vqa(source, splits=("train", "validation=val"), held_out=10)
    worker = layout
    _, errors, lines = read_all(layout, tmp_path / "g")
    assert errors == []
    made: dict[str, list[str]] = {"train": [], "validation": []}
    for item in worker.inputs(tmp_path / "g"):
        made[item.split] += [one.record_id for one in worker.read(item) if isinstance(one, ImageRecord)]
    everything = [str(100 + number) for number in range(12)]
    assert len(made["validation"]) == 4, "4 pictures of 3 questions: the first number that has 10"
    assert made["train"] == ["9", "25", *(picture for picture in everything if picture not in made["validation"])]
    digests = {picture: hashlib.sha256(f"coco/{picture}".encode()).hexdigest() for picture in everything}
    assert sorted(made["validation"]) == sorted(sorted(everything, key=lambda picture: digests[picture])[:4])
    assert lines[-1] == "vqa_test: 12 questions of 4 pictures stay in validation, 24 of 8 join train"
    read_all(layout, tmp_path / "again")
    for path in sorted((tmp_path / "g").iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_what_cannot_be_held_out(source: Path, tmp_path: Path) -> None:
    many_pictures(source, 2)
    with pytest.raises(DataError, match="vqa_test: option held_out: found 10 with train, expected splits train and val"):
        read_all(vqa(source, held_out=10), tmp_path / "g")
    with pytest.raises(DataError, match="option held_out: found 6, expected less than the 6 questions of val"):
        read_all(vqa(source, splits=("train", "validation=val"), held_out=6), tmp_path / "g2")
    write_vqa_v2(source, split="val")
    with pytest.raises(DataError, match="vqa_test: option held_out: found picture 25 in train and val, expected each in one"):
        read_all(vqa(source, splits=("train", "validation=val"), held_out=1), tmp_path / "g3")
    with pytest.raises(DataError, match="d: option held_out: found -1, expected at least 0"):
        VqaV2("s", "d", held_out=-1)


def test_the_most_frequent_answers_alone(source: Path, tmp_path: Path) -> None:
    records, errors, lines = read_all(vqa(source, num_answers=1), tmp_path / "g")
    assert errors == [] and [question.question_id for record in records for question in record.questions] == [9000, 25000]
    left_out = "1 of 3 questions left out, as none of their answers is of the 1 allowed, and 9 answers of the others"
    assert lines == [f"vqa_test: {left_out}; 0 of 2 pictures keep no question"]


def test_ties_among_frequent_answers_go_by_the_alphabet(source: Path, tmp_path: Path) -> None:
    edit_json(source / ANNOTATIONS, lambda c: c["annotations"].pop(0))
    edit_json(source / QUESTIONS, lambda c: c["questions"].pop(1))
    records, _, _ = read_all(vqa(source, num_answers=1), tmp_path / "g")
    assert [question.answer for record in records for question in record.questions] == ["2"]


def test_validation_keeps_the_answers_that_training_has_often(source: Path, tmp_path: Path) -> None:
    write_vqa_v2(source, split="val")
    answers = ["blue"] * 9 + ["red"]  # the most frequent answer of validation, which train has not
    val = source / "v2_mscoco_val2014_annotations.json"
    for number in (0, 1):
        edit_json(
            val,
            lambda c, number=number: c["annotations"][number].update(
                multiple_choice_answer="blue", answers=[{"answer": answer} for answer in answers]
            ),
        )
    records, errors, lines = read_all(vqa(source, split="val", num_answers=2), tmp_path / "g")
    assert errors == [] and [question.answer for record in records for question in record.questions] == ["2"]
    left_out = "2 of 3 questions left out, as none of their answers is of the 2 allowed, and 6 answers of the others"
    assert lines == [f"vqa_test: {left_out}; 1 of 2 pictures keep no question"]
    records, _, _ = read_all(vqa(source, split="val", num_answers=0), tmp_path / "all")
    assert sum(len(record.questions) for record in records) == 3
    both, _, _ = read_all(vqa(source, splits=("train", "validation=val"), num_answers=2), tmp_path / "both")
    assert [question.answer for record in both for question in record.questions] == ["yes", "2", "yes", "2"]


def test_validation_without_the_answers_of_training_is_no_guess(source: Path, tmp_path: Path) -> None:
    write_vqa_v2(source, split="val")
    (source / ANNOTATIONS).unlink()
    with pytest.raises(
        DataError, match="found no v2_mscoco_train2014_annotations.json or .*: the closed set of answers is that of train"
    ) as error:
        read_all(vqa(source, split="val"), tmp_path / "g")
    assert "--option=answers_file=FILE" in str(error.value) and "--option=num_answers=0" in str(error.value)


def test_a_closed_set_from_a_file(source: Path, tmp_path: Path) -> None:
    (source / "answers.txt").write_text("2\n\nblue\r\n")
    records, _, lines = read_all(vqa(source, answers_file="answers.txt"), tmp_path / "g")
    assert [(record.record_id, len(record.questions)) for record in records] == [("25", 1)]
    left_out = "2 of 3 questions left out, as none of their answers is of the 2 allowed, and 6 answers of the others"
    assert lines == [f"vqa_test: {left_out}; 1 of 2 pictures keep no question"]
    (source / "answers.txt").write_text("\n")
    with pytest.raises(DataError, match="answers.txt: found no answer, expected one a line"):
        read_all(vqa(source, answers_file="answers.txt"), tmp_path / "g2")


def test_a_question_without_words_is_an_error_of_its_record(source: Path, tmp_path: Path) -> None:
    edit_json(source / QUESTIONS, lambda c: c["questions"][0].update(question=" "))
    records, errors, _ = read_all(vqa(source, num_answers=0), tmp_path / "g")
    assert [str(error) for error in errors] == [
        "vqa_test record 25: field questions[0]: found '' answered '2', expected at least one word in both"
    ]
    assert [question.question_id for question in records[1].questions] == [25000]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (QUESTIONS, lambda c: c["questions"].append(c["questions"][0]), "field question_id: found 25001 twice, expected every id once"),
        (QUESTIONS, lambda c: c["questions"].pop(), "found no question 25000, which has annotations, expected every question"),
        (QUESTIONS, lambda c: c["questions"][0].update(question_id=5), "question 5 of picture 25: found no annotation, expected one of it"),
        (QUESTIONS, lambda c: c["questions"][0].update(image_id=9), "question 25001 of picture 9: found an annotation of picture 25"),
        (QUESTIONS, lambda c: c["questions"][0].pop("question"), "questions: field question: found no such field"),
        (ANNOTATIONS, lambda c: c["annotations"].append(c["annotations"][0]), "annotations: field id: found 9000 twice"),
        (ANNOTATIONS, lambda c: c["annotations"][0].update(answers=[]), "field answers: found none of question 9000, expected ten"),
        (ANNOTATIONS, lambda c: c["annotations"][0]["answers"][3].pop("answer"), "answers: field answer: found no such field"),
        (ANNOTATIONS, lambda c: c["annotations"][0].pop("question_type"), "annotations: field question_type: found no such field"),
    ],
)
def test_files_that_do_not_fit_are_named(file: str, change: Any, message: str, source: Path, tmp_path: Path) -> None:
    edit_json(source / file, change)
    with pytest.raises(DataError, match=message) as error:
        read_all(vqa(source), tmp_path / "g")
    assert str(error.value).startswith(str(source / file))


def test_options_and_missing_files(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="d: option num_answers: found -1, expected at least 0"):
        VqaV2("s", "d", num_answers=-1)
    with pytest.raises(DataError, match="vqa_test: found no v2_mscoco_val2014_annotations.json or annotations/v2_mscoco_val"):
        read_all(vqa(source, split="val"), tmp_path / "g")
    (source / "annotations").mkdir()
    (source / "annotations" / ANNOTATIONS).write_text("{}")
    with pytest.raises(DataError, match="vqa_test: found .*, .*, expected one file that matches"):
        read_all(vqa(source), tmp_path / "g2")
