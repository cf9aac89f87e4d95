"""OFA's own files of its tasks: tables of tab-separated columns without a header, pictures in base64.

Page: https://github.com/OFA-Sys/OFA/blob/main/datasets.md, and the sections on each task of the README beside it, which print a row of each
table. One command makes one data set of several files, one or more for each split. The tables of text-to-image generation hold codes
without their pictures, and are not read: the code stage makes codes of whole pictures (`prepare.codes`, `--area=whole`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import NO_ID, OBJECT_SEPARATOR, Caption, ImageRecord, LabelledText, Question, WeightedAnswer
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Kind, checked_record
from ofa_jax.prepare.layouts.closed_set import read_closed_set
from ofa_jax.prepare.layouts.gathered import one_file
from ofa_jax.prepare.layouts.ofa_tsv import OfaTable
from ofa_jax.prepare.layouts.picture_names import coco_picture, flickr30k_picture
from ofa_jax.prepare.layouts.snli_ve import KIND, LABELS, labelled
from ofa_jax.prepare.layouts.streams import record_error


@dataclasses.dataclass(frozen=True)
class _Split(OfaTable):
    """What the tables share. The id of a record is `<file>@<first byte of its row>/<id of its picture>`, or without the last part where the
    table has no such column: leaderboards and the leakage filter know pictures by it."""

    splits: tuple[str, ...] = ()  # each "name=file": ("train=caption_stage1_train.tsv", "validation=caption_val.tsv")

    def inputs(self, gathered: Path) -> list[Input]:
        if not self.splits:
            return super().inputs(gathered)
        found = []
        for item in self.splits:
            name, equals, file = item.partition("=")
            if not (name.isidentifier() and equals and file):
                raise DataError(f"{self.dataset}: option splits: found {item!r}, expected name=file, as in train=caption_stage1_train.tsv")
            found += dataclasses.replace(self, splits=(), split=name, pattern=file).inputs(gathered)
        return found

    def record_name(self, place: str, cells: Sequence[str]) -> str:
        return f"{place}/{cells[self.COLUMNS.index('image-id')]}" if "image-id" in self.COLUMNS else place


@dataclasses.dataclass(frozen=True)
class _OfCoco(_Split):
    def picture_key(self, record_id: str) -> str:
        """Returns COCO's name of the picture."""
        return coco_picture(record_id.rpartition("/")[2])


@dataclasses.dataclass(frozen=True)
class OfaCaptions(_OfCoco):
    """Rows of `caption_*.tsv`: a picture with one caption, or several joined by `&&`. VinVL's objects are not used, as in OFA."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq-id", "image-id", "caption", "objects", "image")

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        _, _, captions, _, image = cells
        said = Annotated(record, "image", captions=[Caption(caption) for caption in captions.split(OBJECT_SEPARATOR)])
        yield from checked_record(self, said, self.image(record, image))


@dataclasses.dataclass(frozen=True)
class OfaReferring(_OfCoco):
    """Rows of `refcoco*_*.tsv`: an expression with the box of what it refers to."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq-id", "image-id", "text", "region", "image")

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        _, _, text, region, image = cells
        said = Annotated(record, "image", regions=((text, self.box(record, "region", region.strip().split(","))),))
        yield from checked_record(self, said, self.image(record, image))


@dataclasses.dataclass(frozen=True)
class OfaQuestions(_OfCoco):
    """Rows of `vqa_*.tsv`: a question with weighted answers (one in the table of training, where a question has a row for each), and the
    labels of what VinVL saw, surest first.

    With a closed set, answers outside of it are left out, and so is a question that loses all of them; both are counted and listed, reasons
    "closed_set" and "no_answer".
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("question-id", "image-id", "question", "answers", "objects", "image")

    answers_file: str = ""  # the closed set, one answer a line: a path below the source; empty: every answer stays

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        number, _, question, listed, objects, image = cells
        answers = [WeightedAnswer(*answer) for answer in self.answers(record, "answers", listed).items()]
        targets = answers
        if self.answers_file:
            closed = _closed_set(self)
            targets = [target for target in answers if target.answer in closed]
            expected = f"one of the {len(closed):,} answers of {self.answers_file}"
            for answer, _ in answers:
                if answer not in closed:
                    yield record_error(self, record, reason="closed_set", field="answers", found=repr(answer[:60]), expected=expected)
            if not targets:
                self.fail(record, "no_answer", "answers", f"none that is left of {len(answers)}", expected)
        best = max(targets, key=lambda answer: answer.weight)  # the first of equals
        question_id = int(number) if number.isascii() and number.isdecimal() else NO_ID
        asked = Question(
            question,
            *best,
            question_id=question_id,
            targets=tuple(targets) if len(targets) > 1 else (),
            objects=tuple(filter(str.strip, objects.strip().split(OBJECT_SEPARATOR))),
        )
        yield from checked_record(self, Annotated(record, "image", questions=(asked,)), self.image(record, image))


@functools.lru_cache(maxsize=4)  # asked for row by row
def _closed_set(layout: OfaQuestions) -> frozenset[str]:
    return read_closed_set(one_file(layout, layout.answers_file))


@dataclasses.dataclass(frozen=True)
class OfaEntailment(_Split):
    """Rows of `snli_ve_*.tsv`: a picture, a hypothesis, the caption that is the premise, and the name of the label."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq-id", "image-id", "image", "hypothesis", "caption", "label")

    def picture_key(self, record_id: str) -> str:
        """Returns Flickr30k's name of the picture."""
        return flickr30k_picture(record_id.rpartition("/")[2])

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        _, _, image, hypothesis, premise, label = cells
        questions = (Question(hypothesis.strip(), label.strip(), kind=KIND),)
        said = Annotated(record, "image", captions=(Caption(premise.strip()),), questions=questions)
        for found in checked_record(self, said, self.image(record, image)):
            if isinstance(found, ImageRecord):
                yield from labelled(found, LABELS)
            else:
                yield found


@dataclasses.dataclass(frozen=True)
class OfaClasses(_Split):
    """Rows of `imagenet_1k_*.tsv`: a picture, the number of its class (not used), and the words of the class, which are its caption."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("image", "class", "words")

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        image, _, words = cells
        yield from checked_record(self, Annotated(record, "image", captions=(Caption(words.strip()),)), self.image(record, image))


@dataclasses.dataclass(frozen=True)
class OfaSummaries(_Split):
    """Rows of Gigaword's tables: an article and its headline."""

    KIND: ClassVar[Kind] = "labelled_text"
    COLUMNS: ClassVar[tuple[str, ...]] = ("source", "target")

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        for name, cell in zip(self.COLUMNS, cells, strict=True):
            if not cell.strip():
                self.fail(record, "empty_text", name, repr(cell[:60]), "at least one word")
        yield LabelledText(record, self.dataset, cells[0].strip(), "", cells[1].strip())
