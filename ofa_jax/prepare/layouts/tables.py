"""People's own data as tables: parquet, CSV, TSV and JSON lines, compressed or not, with the names of the columns given.

Pages: https://parquet.apache.org/docs/file-format/, https://www.rfc-editor.org/rfc/rfc4180, https://jsonlines.org. A row is a picture with
what is said of it, or a text. Columns of one caption, question or region may hold lists, of parquet and JSON.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption, Question, RecordError, TextRecord
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Layout, checked_record, required
from ofa_jax.prepare.layouts.streams import CutOff, from_base64, lines
from ofa_jax.prepare.storage import open_file

_PATTERNS = tuple(f"**/*.{ending}{packed}" for ending in ("jsonl", "csv", "tsv") for packed in ("", ".gz", ".zst")) + ("**/*.parquet",)
_ROWS_TOGETHER = 256  # of a parquet file, in memory at a time


@dataclasses.dataclass(frozen=True)
class _Table(Layout):
    PAGE: ClassVar[str] = "the option `patterns` says"

    patterns: tuple[str, ...] = _PATTERNS
    split: str = "train"
    id_column: str = ""  # empty: the number of the row

    def inputs(self, gathered: Path) -> list[Input]:
        del gathered
        root = self.source.rstrip("/")
        return [Input(path.removeprefix(root).strip("/").replace("/", "_"), self.split, path) for path in required(self, *self.patterns)]

    def read(self, item: Input) -> Iterator[Found]:
        number = -1
        try:
            for number, row in enumerate(_rows(item.path)):
                place = f"{item.name}/{number}"
                if isinstance(row, _Fault):
                    yield self._error(place, row.field, row.found, row.expected)
                    continue
                if number == 0:
                    self._check_columns(item.path, row)
                yield from self._row(str(row[self.id_column]) if self.id_column and row.get(self.id_column) is not None else place, row)
        except CutOff as error:
            yield self._error(f"{item.name}/{number + 1}", "(file)", str(error), f"{item.path} whole")
        if number < 0:
            yield self._error(item.name, "(file)", "no rows", f"{item.path} with rows")

    def columns(self) -> tuple[str, ...]:
        """Returns the names of the columns that a row must have."""
        raise NotImplementedError

    def _check_columns(self, path: str, row: dict[str, Any]) -> None:
        for column in filter(None, (self.id_column, *self.columns())):
            if column not in row:
                raise DataError(f"{path}: field {column}: found the columns {', '.join(row)}, expected {column} among them")

    def _row(self, record: str, row: dict[str, Any]) -> Iterator[Found]:
        raise NotImplementedError

    def _error(self, record: str, field: str, found: str, expected: str, reason: str = "schema") -> RecordError:
        return RecordError(dataset=self.dataset, record=record, reason=reason, field=field, found=found, expected=expected)


@dataclasses.dataclass(frozen=True)
class TextTable(_Table):
    """A text a row."""

    KIND: ClassVar[Literal["image", "text"]] = "text"

    text: str = "text"

    def columns(self) -> tuple[str, ...]:
        return (self.text,)

    def _row(self, record: str, row: dict[str, Any]) -> Iterator[Found]:
        text = row.get(self.text)
        if not isinstance(text, str) or not text.strip():
            yield self._error(record, self.text, repr(text)[:60], "at least one word", "empty_text")
        else:
            yield TextRecord(record, self.dataset, text)


@dataclasses.dataclass(frozen=True)
class ColumnTable(_Table):
    """A picture a row: its file below the source, its bytes (parquet) or its base64, and one or several captions, questions with answers,
    regions with boxes, or labels with boxes. Fields are names of columns; empty ones are not used."""

    image: str = "image"
    image_is: Literal["path", "bytes", "base64"] = "path"
    caption: str = ""
    question: str = ""
    answer: str = ""
    region: str = ""
    region_box: str = ""
    label: str = ""
    label_box: str = ""
    box_format: Literal["xyxy", "xywh"] = "xyxy"  # of pixels of the stored picture; text as four numbers separated by commas

    def columns(self) -> tuple[str, ...]:
        return tuple(
            filter(None, (self.image, self.caption, self.question, self.answer, self.region, self.region_box, self.label, self.label_box))
        )

    def _row(self, record: str, row: dict[str, Any]) -> Iterator[Found]:
        try:
            image = self._image(row.get(self.image))
            item = Annotated(
                record,
                "",
                captions=[Caption(text) for text in self._texts(row, self.caption)],
                questions=[Question(question, answer) for question, answer in self._pairs(row, self.question, self.answer)],
                regions=[(text, self._box(box)) for text, box in self._pairs(row, self.region, self.region_box)],
                objects=[(label, self._box(box)) for label, box in self._pairs(row, self.label, self.label_box)],
            )
        except _Fault as fault:
            yield self._error(record, fault.field, fault.found, fault.expected, "image" if fault.field == self.image else "schema")
            return
        yield from checked_record(self, item, image)

    def _image(self, value: Any) -> bytes:
        if self.image_is == "bytes":
            value = value.get("bytes") if isinstance(value, dict) else value  # as Hugging Face's parquet files hold pictures
            if not isinstance(value, bytes):
                raise _Fault(self.image, type(value).__name__, "bytes of a picture")
            return value
        if not isinstance(value, str) or not value:
            raise _Fault(self.image, repr(value)[:60], "a path" if self.image_is == "path" else "base64")
        if self.image_is == "base64":
            try:
                return from_base64(value.encode())
            except ValueError as error:
                found, _, expected = str(error).removeprefix("found ").rpartition(", expected ")
                raise _Fault(self.image, found, expected) from None
        path = f"{self.source.rstrip('/')}/{value}"
        try:
            with open_file(path) as file:
                return file.read()
        except FileNotFoundError:
            raise _Fault(self.image, "no such file", f"the picture {path}") from None

    def _texts(self, row: dict[str, Any], column: str) -> list[str]:
        """Returns the texts of a column: one, or those of a list."""
        if not column:
            return []
        value = row.get(column)
        values = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
        for text in values:
            if not isinstance(text, str):
                raise _Fault(column, repr(text)[:60], "text, or a list of texts")
        return values

    def _pairs(self, row: dict[str, Any], texts: str, others: str) -> list[tuple[str, Any]]:
        if not texts or not others:
            return []
        left, right = self._texts(row, texts), row.get(others)
        several = isinstance(row.get(texts), (list, tuple))
        right = list(right or ()) if several else [right]
        if len(left) != len(right):
            raise _Fault(others, f"{len(right)} values", f"{len(left)}, one for each of {texts}")
        return list(zip(left, right, strict=True))

    def _box(self, value: Any) -> Sequence[float]:
        try:
            numbers = [float(number) for number in (value.split(",") if isinstance(value, str) else value)]
        except (TypeError, ValueError, AttributeError):
            numbers = []
        if len(numbers) != 4:
            raise _Fault(self.region_box or self.label_box, repr(value)[:60], "four numbers")
        x0, y0, x1, y1 = numbers
        return (x0, y0, x0 + x1, y0 + y1) if self.box_format == "xywh" else (x0, y0, x1, y1)


class _Fault(Exception):
    """What is wrong with a row or one of its columns."""

    def __init__(self, field: str, found: str, expected: str):
        super().__init__(field, found, expected)
        self.field, self.found, self.expected = field, found, expected


def _rows(path: str) -> Iterator[dict[str, Any] | _Fault]:
    """Yields the rows of a table by its ending. Raises `CutOff` where it ends in the middle, `DataError` when it is no such table."""
    plain = path.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(".parquet"):
        return _parquet(path)
    if plain.endswith(".jsonl"):
        return _json_lines(path)
    return _delimited(path, "\t" if plain.endswith(".tsv") else ",")


def _json_lines(path: str) -> Iterator[dict[str, Any] | _Fault]:
    for _, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            yield _Fault("(line)", f"{line[:40]!r} ({error})", "an object as JSON in UTF-8")
            continue
        yield row if isinstance(row, dict) else _Fault("(line)", type(row).__name__, "an object as JSON")


def _delimited(path: str, delimiter: str) -> Iterator[dict[str, Any] | _Fault]:
    csv.field_size_limit(sys.maxsize)  # a picture in base64 is larger than the module's limit of 128 KiB

    def texts() -> Iterator[str]:
        for _, line in lines(path):
            yield line.decode("utf-8", errors="surrogateescape") + "\n"

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        header[0] = header[0].removeprefix("\ufeff")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                yield _Fault("(line)", f"{len(values)} columns", f"{len(header)}: {', '.join(header)}")
                continue
            wrong = next((name for name, value in zip(header, values, strict=True) if not _is_text(value)), None)
            yield _Fault(wrong, "bytes that are no text", "UTF-8") if wrong else dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise CutOff(f"a table that breaks off at line {reader.line_num} ({error})") from error


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\udc80" <= character <= "\udcff" for character in value)


def _parquet(path: str) -> Iterator[dict[str, Any] | _Fault]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: found no package pyarrow, expected it for parquet files; install requirements-prepare.txt") from None
    with open_file(path) as file:
        try:
            table = parquet.ParquetFile(file)
            for batch in table.iter_batches(batch_size=_ROWS_TOGETHER):
                yield from batch.to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise CutOff(f"a parquet file that cannot be read ({str(error).splitlines()[0]})") from error
