"""OFA's own pretraining files: tables of tab-separated columns without a header, pictures in base64.

Page: https://github.com/OFA-Sys/OFA/blob/main/datasets.md, and the section on pretraining of the README beside it. There are four tables:
pictures with texts of three types, texts, pictures with codes of their middle, and pictures with objects. Only a line feed ends a row. A
file is read in ranges of bytes, because such files are large; each range has the rows that begin in it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import OBJECT_SEPARATOR, Caption, ImageRecord, Question, RecordError, TextRecord
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Kind, Layout, checked_record, required
from ofa_jax.prepare.layouts.ofa_negatives import read_answer_kinds
from ofa_jax.prepare.layouts.streams import COMPRESSED, file_error, file_inputs, from_base64, record_error, relative_path, spans, text_lines

WEIGHT_SEPARATOR = "|!+"  # between the weight of an answer and the answer
_TYPES = ("caption", "qa", "visual_grounding")
_IMAGE_PX, _NUM_CODES, _CODES = 256, 8_192, 256  # side of a picture with codes, codes there are, codes of its middle


@dataclasses.dataclass(frozen=True)
class OfaTable(Layout):
    """What the tables share, those of tasks too (`ofa_downstream`). The id of a record is `<file>@<first byte of its row>/<uniq_id>`,
    because rows of one picture may share their uniq_id, and is the same whatever the ranges."""

    PAGE: ClassVar[str] = "https://github.com/OFA-Sys/OFA/blob/main/datasets.md"
    COLUMNS: ClassVar[tuple[str, ...]] = ()

    pattern: str = "*.tsv"
    split: str = "train"
    bytes_per_input: int = 512 << 20

    def inputs(self, gathered: Path) -> list[Input]:
        if self.bytes_per_input < 1:
            raise DataError(f"{self.dataset}: bytes_per_input: found {self.bytes_per_input}, expected 1 or more")
        files = file_inputs(self, required(self, self.pattern), split=self.split, endings=(".tsv",))
        if packed := next((file.path for file in files if file.path.endswith(COMPRESSED)), ""):
            raise DataError(f"{packed}: found a compressed file, expected plain .tsv files, which can be read in ranges")
        return [
            dataclasses.replace(file, name=f"{file.name}-{part:05d}", span=span)
            for file in files
            for part, span in enumerate(spans(file.path, size=self.bytes_per_input))
        ]

    def read(self, item: Input) -> Iterator[Found]:
        if item.span == (0, 0):
            yield file_error(self, item, "a file without rows")
        file = relative_path(self.source, item.path).removesuffix(".tsv")
        for begin, line in text_lines(item.path, span=item.span):
            place = f"{file}@{begin}"  # the byte, because a range does not know its row numbers
            try:
                cells = self._cells(place, line)
                yield from self.row_records(self.record_name(place, cells), cells)
            except RecordError as error:
                yield error

    def _cells(self, place: str, line: bytes) -> list[str]:
        try:
            cells = line.decode().split("\t")
        except UnicodeDecodeError as error:
            self.fail(place, "schema", "(row)", f"bytes that are no UTF-8 ({error.reason} at {error.start})", "UTF-8")
        if len(cells) != len(self.COLUMNS):
            self.fail(place, "schema", "(row)", f"{len(cells)} columns", f"{len(self.COLUMNS)}: {', '.join(self.COLUMNS)}")
        if not cells[0].strip() and self.COLUMNS[0].endswith("id"):
            self.fail(place, "schema", self.COLUMNS[0], repr(cells[0]), "an id")
        return cells

    def record_name(self, place: str, cells: Sequence[str]) -> str:
        """Returns the id of the record of a row; `place` is where it begins."""
        return f"{place}/{cells[0]}"

    @abstractmethod
    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        """Yields what one row gives, none for a row that belongs to another data set. Raises `RecordError` where that is all of it."""

    def image(self, record: str, text: str) -> bytes:
        """Returns the picture of a row. Raises `RecordError`."""
        try:
            return from_base64(text)
        except ValueError as error:
            found, _, expected = str(error).removeprefix("found ").rpartition(", expected ")
            self.fail(record, "image", "image", found, expected)

    def box(self, record: str, field: str, numbers: Sequence[str]) -> list[float]:
        """Returns four numbers. Raises `RecordError`."""
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = []
        if len(values) != 4:
            self.fail(record, "schema", field, repr(",".join(numbers)[:80]), "x0,y0,x1,y1")
        return values

    def best_answer(self, record: str, field: str, listed: str) -> tuple[str, float]:
        """Returns the answer of the largest weight, the first of equals, and the weight. Raises `RecordError`."""
        answers = self.answers(record, field, listed)
        best = max(answers, key=lambda answer: answers[answer])
        return best, answers[best]

    def answers(self, record: str, field: str, listed: str) -> dict[str, float]:
        """Returns the weights of all answers, in order. Raises `RecordError`."""
        answers: dict[str, float] = {}
        for entry in listed.split(OBJECT_SEPARATOR):
            weight, separator, answer = entry.partition(WEIGHT_SEPARATOR)
            try:
                answers[answer] = float(weight)
            except ValueError:
                separator = ""
            if not separator or not math.isfinite(answers[answer]):
                self.fail(record, "schema", field, repr(entry[:80]), f"a weight, {WEIGHT_SEPARATOR} and an answer")
        return answers


@dataclasses.dataclass(frozen=True)
class OfaVisionLanguage(OfaTable):
    """Rows of one type of `vision_language*.tsv`; those of other types belong to other data sets.

    The weight of an answer becomes the question's confidence; of several answers the one of the largest weight stays, the first of equals.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq_id", "image", "caption", "question", "refs", "gt_objects", "dataset_name", "type")

    pattern: str = "vision_language*.tsv"
    row: Literal["caption", "qa", "visual_grounding"] = "caption"
    names: tuple[str, ...] = ()  # values of dataset_name whose rows are taken; empty: all
    answer_kinds: str = ""  # a type2ans.json: kinds of questions, by which negative answers are drawn; empty: all are "other"

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        _, image, caption, question, refs, objects, name, kind = cells
        kind = kind.rstrip("\r")  # of a file with the line ends of Windows
        if kind not in _TYPES:
            self.fail(record, "schema", "type", repr(kind[:40]), ", ".join(_TYPES))
        if kind != self.row or (self.names and name not in self.names):
            return
        said = Annotated(record, "image")
        if kind == "caption":
            words = tuple(word for word in objects.split(OBJECT_SEPARATOR) if word.strip())
            said = dataclasses.replace(said, captions=(Caption(caption, words),))
        elif kind == "qa":
            answer, weight = self.best_answer(record, "refs", refs)
            kinds = _answer_kinds(self.answer_kinds) if self.answer_kinds else {}
            said = dataclasses.replace(said, questions=(Question(question, answer, weight, kinds.get(answer, "other")),))
        else:
            said = dataclasses.replace(said, regions=((caption, self.box(record, "refs", refs.strip().split(","))),))
        yield from checked_record(self, said, self.image(record, image))


@functools.lru_cache(maxsize=4)
def _answer_kinds(path: str) -> dict[str, str]:
    return read_answer_kinds(path)


@dataclasses.dataclass(frozen=True)
class OfaText(OfaTable):
    """Rows of `text*.tsv`."""

    KIND: ClassVar[Kind] = "text"
    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq_id", "text")

    pattern: str = "text*.tsv"

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        _, text = cells
        if not text.strip():
            self.fail(record, "empty_text", "text", repr(text[:60]), "at least one word")
        yield TextRecord(record, self.dataset, text)


@dataclasses.dataclass(frozen=True)
class OfaImages(OfaTable):
    """Rows of `image*.tsv`: pictures of 256 x 256 pixels with the 256 codes of their middle."""

    NUM_CODES: ClassVar[int] = _NUM_CODES
    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq_id", "image", "image-code")

    pattern: str = "image*.tsv"

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        _, image, listed = cells
        try:
            codes = [int(code) for code in listed.split()]
        except ValueError:
            self.fail(record, "schema", "image-code", repr(listed[:60]), f"{_CODES} integers")
        if len(codes) != _CODES:
            self.fail(record, "schema", "image-code", f"{len(codes)} codes", f"{_CODES}")
        if min(codes) < 0 or max(codes) >= _NUM_CODES:
            self.fail(record, "token_range", "image-code", f"codes from {min(codes)} to {max(codes)}", f"0 to {_NUM_CODES - 1}")
        for found in checked_record(self, Annotated(record, "image"), self.image(record, image)):
            if isinstance(found, ImageRecord):
                if (found.width, found.height) != (_IMAGE_PX, _IMAGE_PX):
                    self.fail(record, "image", "image", f"{found.width}x{found.height} pixels", f"{_IMAGE_PX}x{_IMAGE_PX}")
                found = dataclasses.replace(found, codes=np.array(codes, np.int32))
            yield found


@dataclasses.dataclass(frozen=True)
class OfaDetection(OfaTable):
    """Rows of `detection*.tsv`: pictures with `x0,y0,x1,y1,cat_id,cat_name` joined by `&&`; the number of the category is not used."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq_id", "image", "label")

    pattern: str = "detection*.tsv"

    def row_records(self, record: str, cells: Sequence[str]) -> Iterator[Found]:
        _, image, label = cells
        objects: list[tuple[str, Sequence[float]]] = []
        for number, entry in enumerate(label.rstrip("\r").split(OBJECT_SEPARATOR) if label.strip() else ()):
            parts = entry.split(",", 5)  # a name may hold commas
            field = f"label[{number}]"
            if len(parts) != 6:
                yield record_error(self, record, field=field, found=repr(entry[:80]), expected="x0,y0,x1,y1,cat_id,cat_name")
                continue
            try:
                objects.append((parts[5], self.box(record, field, parts[:4])))
            except RecordError as error:
                yield error
        if not objects:
            self.fail(record, "empty", "label", repr(label[:60]), "at least one object")
        yield from checked_record(self, Annotated(record, "image", objects=objects), self.image(record, image))
