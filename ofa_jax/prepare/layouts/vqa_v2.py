"""VQAv2: questions with ten people's answers (https://visualqa.org/download.html).

`v2_OpenEnded_mscoco_train2014_questions.json` holds `questions`, `v2_mscoco_train2014_annotations.json` the `annotations` of the same
question ids; pictures are COCO's, `train2014/COCO_train2014_000000000009.jpg`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Question
from ofa_jax.data.storage import open_file
from ofa_jax.prepare.layouts.base import Annotated, Progress
from ofa_jax.prepare.layouts.gathered import Gathered, add_once, one_file, one_of
from ofa_jax.prepare.layouts.json_arrays import field, items
from ofa_jax.prepare.layouts.picture_names import coco_picture


class _Answers(NamedTuple):
    image: int
    kind: str
    common: str  # `multiple_choice_answer`, the answer that most people gave
    people: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class VqaV2(Gathered):
    """VQAv2's questions, one record a picture, named by COCO's id.

    `answer` is the answer that most of the ten people gave (on a tie, the one given first), `confidence` its accuracy by the official
    soft measure: 0.3, 0.6, 0.9 for one, two, three people, 1 for more. `kind` is the question type ("how many", "what color is the").
    Questions whose answer is not in the closed set of answers are left out and counted, those of validation too: OFA keeps of both splits
    what is answered by one of the 3,129 most frequent answers (OFA-Sys/OFA issues 59 and 191). The set is that of train for every split, so
    that validation asks for nothing that training never says. The official validation asks everything and is harder: it can be prepared
    beside this one, `--dataset=vqa_v2_all --option=split=val --option=num_answers=0`.

    Answers are compared and stored as the file has them; the official normalisation before they are compared, which evaluation makes, is
    not made.
    """

    split: str = "train"  # or "val"; OFA pretrains on the original train split alone
    answers_file: str = ""  # the closed set, one answer a line (the answers of OFA's `trainval_ans2label`): a path below the source
    # Without a file: as many of the most frequent `multiple_choice_answer`s of train's annotations; ties by the alphabet. 0: all. The
    # usual 3,129 are those that are it for at least 9 questions of train and val together, so a few of the rarest differ.
    num_answers: int = 3_129

    PAGE: ClassVar[str] = "https://visualqa.org/download.html"

    def __post_init__(self) -> None:
        one_of(self, "split", ("train", "val"))
        if self.num_answers < 0:
            raise DataError(f"{self.dataset}: option num_answers: found {self.num_answers}, expected at least 0")

    def picture_key(self, record_id: str) -> str:
        """Returns COCO's name of the picture."""
        return coco_picture(record_id)

    def pictures_in(self, progress: Progress) -> Iterator[Annotated]:
        """Yields every picture that keeps a question. Questions and answers are held: about 300 MB for the 444,000 of train."""
        answers = _read_answers(self._annotations(self.split))
        allowed = self._allowed(answers)
        name = f"v2_OpenEnded_mscoco_{self.split}2014_questions.json"
        path = one_file(self, name, f"questions/{name}", f"annotations/{name}")
        questions: dict[int, list[Question]] = {}
        seen: set[int] = set()
        left_out = 0
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
            answer, count = Counter(found.people).most_common(1)[0]
            of_picture = questions.setdefault(image, [])
            if allowed is not None and answer not in allowed:
                left_out += 1
                continue
            text = field(raw, "question", str, path=path, of="questions").strip()
            of_picture.append(Question(text, answer, min(10, 3 * count) / 10, found.kind, number, found.people))
        if len(answers) > len(seen):
            number = next(number for number in answers if number not in seen)
            raise DataError(f"{path}: found no question {number}, which has annotations, expected every question")
        without = sum(not of_picture for of_picture in questions.values())
        if left_out:
            progress(
                f"{self.dataset}: {left_out} of {len(seen)} questions left out: their answer is not of the {len(allowed or ())} allowed; "
                f"{without} of {len(questions)} pictures keep no question"
            )
        for image in sorted(questions):
            if questions[image]:
                yield Annotated(str(image), f"{self.split}2014/COCO_{self.split}2014_{image:012d}.jpg", questions=questions[image])

    def _annotations(self, split: str) -> str:
        name = f"v2_mscoco_{split}2014_annotations.json"
        return one_file(self, name, f"annotations/{name}")

    def _allowed(self, answers: dict[int, _Answers]) -> set[str] | None:
        """Returns the closed set of answers; None where all are allowed. answers: of this split."""
        if self.answers_file:
            path = one_file(self, self.answers_file)
            with open_file(path) as file:
                data = file.read()
            try:
                allowed = {line.strip() for line in data.decode("utf-8").splitlines()} - {""}
            except UnicodeDecodeError:
                raise DataError(f"{path}: found bytes that are no UTF-8, expected one answer a line") from None
            if not allowed:
                raise DataError(f"{path}: found no answer, expected one a line")
            return allowed
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
