"""VQAv2: questions with ten people's answers (https://visualqa.org/download.html).

`v2_OpenEnded_mscoco_train2014_questions.json` holds `questions`, `v2_mscoco_train2014_annotations.json` the `annotations` of the same
question ids; pictures are COCO's, `train2014/COCO_train2014_000000000009.jpg`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Question, WeightedAnswer
from ofa_jax.metrics.vqa_accuracy import answer_weights
from ofa_jax.prepare.layouts.base import Annotated, Progress, write_left_out, write_parts
from ofa_jax.prepare.layouts.closed_set import read_closed_set
from ofa_jax.prepare.layouts.gathered import Gathered, add_once, one_file, one_of
from ofa_jax.prepare.layouts.json_arrays import field, items
from ofa_jax.prepare.layouts.picture_names import coco_picture


class _Split(NamedTuple):
    """A split's pictures in ascending order of their ids, and what was left out of it: questions, answers of those kept, pictures."""

    pictures: list[Annotated]
    left_out: dict[str, int]


class _Answers(NamedTuple):
    image: int
    kind: str
    common: str  # `multiple_choice_answer`, the answer that most people gave
    people: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class VqaV2(Gathered):
    """VQAv2's questions, one record a picture, named by COCO's id.

    `targets` are all answers of the ten people with their accuracy by the official soft measure: 0.3, 0.6, 0.9 for one, two, three people,
    1 for more (`metrics.vqa_accuracy.answer_weights`); `answer` and `confidence` are the one of the most people (on a tie, the one given
    first), and are alone where there is no other. `kind` is the question type ("how many", "what color is the"). Answers that are not in
    the closed set, or empty, are left out, and so are questions that lose all of theirs and pictures without questions; the manifest
    counts them by official split (`left_out`). That is so of validation too: OFA keeps of both splits what is answered by one of the 3,129
    most frequent answers (OFA-Sys/OFA issues 59 and 191). The set is that of train for every split, so that validation asks for nothing
    that training never says. What the ten people said (`answers`, by which evaluation judges) stays whole. The official validation asks
    everything and is harder: it can be prepared beside this one, `--dataset=vqa_v2_all --option=split=val --option=num_answers=0`.

    Answers are compared and stored as the file has them; the official normalisation before they are compared, which evaluation makes, is
    not made.
    """

    split: str = "train"  # or "val"; OFA pretrains on the original train split alone
    answers_file: str = ""  # the closed set, one answer a line (the answers of OFA's `trainval_ans2label`): a path below the source
    # Without a file: as many of the most frequent `multiple_choice_answer`s of train's annotations; ties by the alphabet. 0: all. The
    # usual 3,129 are those that are it for at least 9 questions of train and val together, so a few of the rarest differ.
    num_answers: int = 3_129
    # Questions that validation keeps, of the splits train and val; the rest of val joins train, as OFA trains on all but some 10,000. Whole
    # pictures stay, those of the smallest SHA-256 of their name, so no picture is in both and any build chooses the same. 0: all of val.
    held_out: int = 0

    PAGE: ClassVar[str] = "https://visualqa.org/download.html"

    def __post_init__(self) -> None:
        one_of(self, "split", ("train", "val"))
        for name in ("num_answers", "held_out"):
            if getattr(self, name) < 0:
                raise DataError(f"{self.dataset}: option {name}: found {getattr(self, name)}, expected at least 0")

    def picture_key(self, record_id: str) -> str:
        """Returns COCO's name of the picture."""
        return coco_picture(record_id)

    def gather(self, folder: Path, progress: Progress) -> None:
        """Writes the parts of every split and what was left out of each. Questions and answers of all splits are held.

        Raises `DataError` for files that do not fit, for a split without pictures, and where `held_out` has no train and val to divide, or
        not so many questions.
        """
        splits = {name: cast(VqaV2, one) for name, one in self._by_split()}
        theirs = {one.split: name for name, one in splits.items()}
        if self.held_out and set(theirs) != {"train", "val"}:
            raise DataError(
                f"{self.dataset}: option held_out: found {self.held_out} with {', '.join(theirs)}, expected splits train and val"
            )
        read = {name: one.read_split(progress) for name, one in splits.items()}
        if self.held_out:
            kept, rest = self._divided(read[theirs["val"]].pictures)
            if both := {one.record_id for one in (*kept, *rest)} & {one.record_id for one in read[theirs["train"]].pictures}:
                raise DataError(f"{self.dataset}: option held_out: found picture {min(both)} in train and val, expected each in one")
            progress(
                f"{self.dataset}: {_num_questions(kept)} questions of {len(kept)} pictures stay in {theirs['val']}, "
                f"{_num_questions(rest)} of {len(rest)} join {theirs['train']}"
            )
            read[theirs["val"]] = read[theirs["val"]]._replace(pictures=kept)
            read[theirs["train"]].pictures.extend(rest)
        for name, found in read.items():
            if not found.pictures:
                raise DataError(f"{self.dataset}: found no picture of {name} in its annotation files, expected at least one")
            write_parts(folder, name, found.pictures)
        write_left_out(folder, {name: found.left_out for name, found in read.items()})

    def _divided(self, pictures: list[Annotated]) -> tuple[list[Annotated], list[Annotated]]:
        """Returns the pictures that validation keeps and the others, both in their order."""
        if self.held_out >= _num_questions(pictures):
            found = f"{self.held_out}, expected less than the {_num_questions(pictures)} questions of val"
            raise DataError(f"{self.dataset}: option held_out: found {found}")
        kept: set[str] = set()
        questions = 0
        for picture in sorted(pictures, key=lambda one: hashlib.sha256(self.picture_key(one.record_id).encode()).digest()):
            if questions >= self.held_out:
                break
            kept.add(picture.record_id)
            questions += len(picture.questions)
        return [one for one in pictures if one.record_id in kept], [one for one in pictures if one.record_id not in kept]

    def read_split(self, progress: Progress) -> _Split:
        """Returns the pictures of the option `split` that keep a question. Raises `DataError` for files that do not fit."""
        answers = _read_answers(self._annotations(self.split))
        allowed = self._allowed(answers)
        name = f"v2_OpenEnded_mscoco_{self.split}2014_questions.json"
        path = one_file(self, name, f"questions/{name}", f"annotations/{name}")
        questions: dict[int, list[Question]] = {}
        seen: set[int] = set()
        left_out = dict.fromkeys(("questions", "answers", "pictures"), 0)
        for _, raw in items(path, "questions"):
            number = field(raw, "question_id", int, path=path, of="questions")
            image = field(raw, "image_id", int, path=path, of="questions")
            if number in seen:
                raise DataError(f"{path}: questions: field question_id: found {number} twice, expected every id once")
            seen.add(number)
            found = answers.get(number)
            if found is None or found.image != image:
                had = "no annotation" if found is None else f"an annotation of picture {found.image}"
                raise DataError(f"{path}: question {number} of picture {image}: found {had}, expected one of it in the annotation file")
            of_picture = questions.setdefault(image, [])
            weights = answer_weights(found.people)
            usable = (answer for answer in weights if answer.strip() and (allowed is None or answer in allowed))
            targets = [WeightedAnswer(answer, weights[answer]) for answer in usable]
            if not targets:
                left_out["questions"] += 1
                continue
            left_out["answers"] += len(weights) - len(targets)
            counts = Counter(found.people)
            best = max(targets, key=lambda target: counts[target.answer])  # the first of equals
            text = field(raw, "question", str, path=path, of="questions").strip()
            of_picture.append(Question(text, *best, found.kind, number, found.people, targets=tuple(targets) if len(targets) > 1 else ()))
        if len(answers) > len(seen):
            number = next(number for number in answers if number not in seen)
            raise DataError(f"{path}: found no question {number}, which has annotations, expected every question")
        left_out["pictures"] = sum(not of_picture for of_picture in questions.values())
        if any(left_out.values()):
            progress(
                f"{self.dataset}: {left_out['questions']} of {len(seen)} questions left out, as none of their answers is of the "
                f"{len(allowed or ())} allowed, and {left_out['answers']} answers of the others; "
                f"{left_out['pictures']} of {len(questions)} pictures keep no question"
            )
        return _Split(
            [
                Annotated(str(image), f"{self.split}2014/COCO_{self.split}2014_{image:012d}.jpg", questions=questions[image])
                for image in sorted(questions)
                if questions[image]
            ],
            left_out,
        )

    def _annotations(self, split: str) -> str:
        name = f"v2_mscoco_{split}2014_annotations.json"
        return one_file(self, name, f"annotations/{name}")

    def _allowed(self, answers: dict[int, _Answers]) -> set[str] | None:
        """Returns the closed set of answers; None where all are allowed. answers: of this split."""
        if self.answers_file:
            return set(read_closed_set(one_file(self, self.answers_file)))
        if not self.num_answers:
            return None
        counts = Counter(found.common for found in answers.values()) if self.split == "train" else self._answers_of_training()
        return set(sorted(counts, key=lambda answer: (-counts[answer], answer))[: self.num_answers])

    def _answers_of_training(self) -> Counter[str]:
        """Returns how many questions of train each answer is the common one of."""
        try:
            path = self._annotations("train")
        except DataError as error:
            raise DataError(
                f"{error}: the closed set of answers is that of train, for {self.split} too; lay the file there, or give "
                "--option=answers_file=FILE, or --option=num_answers=0 to keep all questions"
            ) from error
        return Counter(field(raw, "multiple_choice_answer", str, path=path, of="annotations") for _, raw in items(path, "annotations"))


def _num_questions(pictures: list[Annotated]) -> int:
    return sum(len(picture.questions) for picture in pictures)


def _read_answers(path: str) -> dict[int, _Answers]:
    found: dict[int, _Answers] = {}
    for _, raw in items(path, "annotations"):
        people = tuple(
            sys.intern(field(answer, "answer", str, path=path, of="answers"))  # few are different
            for answer in field(raw, "answers", list, path=path, of="annotations")
        )
        if not people:
            raise DataError(f"{path}: annotations: field answers: found none of question {raw.get('question_id')}, expected ten")
        answers = _Answers(
            field(raw, "image_id", int, path=path, of="annotations"),
            sys.intern(field(raw, "question_type", str, path=path, of="annotations")),
            sys.intern(field(raw, "multiple_choice_answer", str, path=path, of="annotations")),
            people,
        )
        add_once(found, field(raw, "question_id", int, path=path, of="annotations"), answers, path=path, what="annotations")
    return found
