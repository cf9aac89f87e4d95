"""Your own data: tables in parquet, csv, tsv or JSON lines, with the names of the columns that hold what.

Formats: see `table_rows`. A picture is a path below the source, base64, or bytes (in parquet, also as the struct of bytes and path of
https://huggingface.co/docs/datasets/image_dataset). A cell without a value (null, or empty in csv and tsv) stands for no annotation.
"""

from __future__ import annotations

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption, Question, RecordError, TextRecord
from ofa_jax.data.storage import open_file
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Kind, Layout, checked_record, required
from ofa_jax.prepare.layouts.streams import Damaged, file_error, file_inputs, from_base64, record_error
from ofa_jax.prepare.layouts.table_rows import ENDINGS, Problem, Quoted, read_rows, table_format


@dataclasses.dataclass(frozen=True)
class _Table(Layout):
    """What tables of pictures and of texts share. Each file is one input."""

    PAGE: ClassVar[str] = "its own columns"
    COLUMN_FIELDS: ClassVar[tuple[str, ...]] = ()  # fields that name columns

    pattern: str = ""  # of the tables; empty: every file that ends as one
    split: str = "train"
    header: tuple[str, ...] = ()  # names of the columns of csv and tsv files without a line of names
    quoted: Quoted = "csv"  # whether cells may stand in quotes; "csv": in csv files only
    id: str = ""  # empty: the id is `<name of the file>/<number of the row>`

    def wanted(self) -> list[str]:
        """Returns the columns that are read."""
        return list(dict.fromkeys(name for field in ("id", *self.COLUMN_FIELDS) if (name := getattr(self, field))))

    def inputs(self, gathered: Path) -> list[Input]:
        self.check_fields()
        patterns = (self.pattern,) if self.pattern else tuple(f"**/*{ending}" for ending in ENDINGS)
        files = required(self, *patterns)
        for path in files:
            table_format(path)
        return file_inputs(self, files, split=self.split, endings=ENDINGS)

    def check_fields(self) -> None:
        """Raises `DataError` when the names of columns do not fit together."""

    def read(self, item: Input) -> Iterator[Found]:
        number = 0
        try:
            for number, values in read_rows(item.path, self.wanted(), header=self.header, quoted=self.quoted):
                record = f"{item.name}/{number}"
                if isinstance(values, Problem):
                    yield record_error(self, record, field=values.field, found=values.found, expected=values.expected)
                    continue
                try:
                    if self.id:
                        record = self.text(record, self.id, values[self.id]) or self.fail(record, "schema", self.id, "nothing", "an id")
                    yield from self.row_records(record, values)
                except RecordError as error:
                    yield error
        except Damaged as error:
            yield file_error(self, item, str(error))
            return
        if not number:
            yield file_error(self, item, "a table without rows")

    @abstractmethod
    def row_records(self, record: str, values: Mapping[str, Any]) -> Iterator[Found]:
        """Yields what one row gives. Raises `RecordError` where that is all of it."""

    def text(self, record: str, column: str, value: Any) -> str:
        """Returns the text of a cell; "" for one without a value. Numbers are written out. Raises `RecordError`."""
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.fail(record, "schema", column, f"{type(value).__name__} {value!r:.60}", "a text")
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.fail(record, "schema", column, f"{text[:60]!a} (no UTF-8 at {error.start})", "text in UTF-8")
        return text.strip()


@dataclasses.dataclass(frozen=True)
class TextTable(_Table):
    """A text a row."""

    KIND: ClassVar[Kind] = "text"
    COLUMN_FIELDS: ClassVar[tuple[str, ...]] = ("text_column",)

    text_column: str = "text"

    def row_records(self, record: str, values: Mapping[str, Any]) -> Iterator[Found]:
        text = self.text(record, self.text_column, values[self.text_column])
        if not text:
            self.fail(record, "empty_text", self.text_column, "nothing", "at least one word")
        yield TextRecord(record, self.dataset, text)


@dataclasses.dataclass(frozen=True)
class ColumnTable(_Table):
    """A picture a row, with what the named columns say of it; with no such column, pictures alone.

    `caption`, and `question` with `answer`, hold a text or a list of texts. `region_text` with `region_box`, and `label` with `label_box`,
    hold a text and a box, or lists of as many. A box is four numbers: a list, "x0,y0,x1,y1", or JSON, in which lists of boxes (and of
    their texts) can stand in csv too.
    """

    COLUMN_FIELDS: ClassVar[tuple[str, ...]] = (
        "image", "caption", "question", "answer", "region_text", "region_box", "label", "label_box"
    )  # fmt: skip

    image: str = "image"
    image_form: Literal["path", "base64", "bytes"] = "path"
    caption: str = ""
    question: str = ""
    answer: str = ""
    region_text: str = ""
    region_box: str = ""
    label: str = ""
    label_box: str = ""
    box_format: Literal["xyxy", "xywh"] = "xyxy"

    def check_fields(self) -> None:
        if not self.image:
            raise DataError(f"{self.dataset}: image: found no column, expected the one of the pictures; texts alone are a text table")
        for first, second in (("question", "answer"), ("region_text", "region_box"), ("label", "label_box")):
            if bool(getattr(self, first)) != bool(getattr(self, second)):
                given, other = (first, second) if getattr(self, first) else (second, first)
                raise DataError(f"{self.dataset}: {other}: found no column beside {given}={getattr(self, given)}, expected both or none")

    def row_records(self, record: str, values: Mapping[str, Any]) -> Iterator[Found]:
        captions = [Caption(text) for text in self._texts(record, self.caption, values)]
        questions = self._texts(record, self.question, values)
        answers = self._texts(record, self.answer, values)
        if len(questions) != len(answers):
            self.fail(record, "schema", self.answer, f"{len(answers)} for {len(questions)} of {self.question}", "as many")
        regions = self._boxed(record, self.region_text, self.region_box, values)
        objects = self._boxed(record, self.label, self.label_box, values)
        if len(self.wanted()) > 1 + bool(self.id) and not (captions or questions or regions or objects):
            self.fail(record, "empty", "(record)", "no annotation", f"one of {', '.join(self.wanted())}")
        pairs = [Question(question, answer) for question, answer in zip(questions, answers, strict=True)]
        said = Annotated(record, "image", captions=captions, questions=pairs, regions=regions, objects=objects)
        yield from checked_record(self, said, self._image(record, values[self.image]))

    def _texts(self, record: str, column: str, values: Mapping[str, Any]) -> list[str]:
        """Returns the texts of a cell, which holds one or a list; those of a list may be empty, which the record's check finds."""
        value = values[column] if column else None
        if isinstance(value, list):
            return [self.text(record, column, one) for one in value]
        text = self.text(record, column, value)
        return [text] if text else []

    def _boxed(self, record: str, text_column: str, box_column: str, values: Mapping[str, Any]) -> list[tuple[str, Sequence[float]]]:
        """Returns the texts of two cells with their boxes, x0 y0 x1 y1."""
        if not box_column or values[box_column] in (None, ""):
            if text_column and (texts := self._texts(record, text_column, values)):
                self.fail(record, "schema", box_column, f"nothing for {text_column} {texts[0]!r:.60}", "a box")
            return []
        try:
            boxes, listed = parse_boxes(values[box_column])
        except ValueError as error:
            self.fail(record, "schema", box_column, str(error), "four numbers, or a list of such")
        cell = values[text_column]
        if listed and isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except (ValueError, RecursionError) as error:
                self.fail(record, "schema", text_column, f"{cell!r:.60} ({error})", "a list of texts in JSON")
        texts = self._texts(record, text_column, {text_column: cell})
        if len(texts) != len(boxes):
            self.fail(record, "schema", text_column, f"{len(texts)} for {len(boxes)} of {box_column}", "as many")
        if self.box_format == "xywh":
            boxes = [[x, y, x + width, y + height] for x, y, width, height in boxes]
        return list(zip(texts, boxes, strict=True))

    def _image(self, record: str, value: Any) -> bytes:
        if isinstance(value, dict):  # a struct of bytes and path: bytes where they are there
            value = value.get("bytes") if self.image_form == "bytes" else value.get("path")
        expected = {"path": "a path below the source", "base64": "base64", "bytes": "bytes"}[self.image_form]
        if isinstance(value, bytes) and self.image_form == "bytes":
            return value
        if not isinstance(value, str) or not value or self.image_form == "bytes":
            self.fail(record, "image", self.image, f"{type(value).__name__} {value!r:.40}", expected)
        if self.image_form == "base64":
            try:
                return from_base64(value)
            except ValueError as error:
                found, _, expected = str(error).removeprefix("found ").rpartition(", expected ")
                self.fail(record, "image", self.image, found, expected)
        path = PurePosixPath(self.text(record, self.image, value))
        if path.is_absolute() or ".." in path.parts or "\0" in value:
            self.fail(record, "image", self.image, repr(value[:80]), expected)
        address = f"{self.source.rstrip('/')}/{path}"
        try:
            with open_file(address) as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError):
            self.fail(record, "image", self.image, f"no file {value[:80]!r}", f"the picture {address}")


def parse_boxes(value: Any) -> tuple[list[list[float]], bool]:
    """Returns the boxes of a cell, four numbers each, and whether the cell holds a list of them. Raises ValueError with what was found."""
    raw = value
    if isinstance(raw, str):
        try:
            raw = json.loads(raw) if raw.lstrip().startswith("[") else raw.split(",")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{value!r:.60} ({error})") from error
    if not isinstance(raw, list):
        raise ValueError(f"{type(value).__name__} {value!r:.60}")
    listed = not raw or isinstance(raw[0], list)
    boxes = []
    for box in raw if listed else [raw]:
        try:
            numbers = [float(number) for number in box]
        except (TypeError, ValueError, OverflowError):
            numbers = []
        if len(numbers) != 4:
            raise ValueError(f"{box!r:.60}")
        boxes.append(numbers)
    return boxes, listed
