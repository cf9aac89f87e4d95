"""OFA's own files of its tasks: tables of tab-separated columns without a header, pictures in base64.

Page: https://github.com/OFA-Sys/OFA/blob/main/datasets.md, and the sections on each task of the README beside it, which print a row of each
table. One command makes one data set of several files, one or more for each split. The tables of text-to-image generation hold codes
without their pictures, and are not read: the code stage makes codes of whole pictures (`prepare.codes`, `--area=whole`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import NO_ID, OBJECT_SEPARATOR, Caption, ImageRecord, LabelledText, Question
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Kind, checked_record
from ofa_jax.prepare.layouts.ofa_tsv import OfaTable
from ofa_jax.prepare.layouts.picture_names import coco_picture, flickr30k_picture
from ofa_jax.prepare.layouts.snli_ve import KIND, LABELS, labelled


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
    """Rows of `vqa_*.tsv`: a question with weighted answers, of which the one of the largest weight stays.

    The objects that VinVL saw have no place in a record (their boxes are not in the file) and are left out.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("question-id", "image-id", "question", "answers", "objects", "image")

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        number, _, question, answers, _, image = cells
        answer, weight = self.best_answer(record, "answers", answers)
        question_id = int(number) if number.isascii() and number.isdecimal() else NO_ID
        said = Annotated(record, "image", questions=(Question(question, answer, weight, question_id=question_id),))
        yield from checked_record(self, said, self.image(record, image))


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
