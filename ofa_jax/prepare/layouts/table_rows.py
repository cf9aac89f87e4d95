"""Rows of tables with named columns, whatever the format: parquet, csv, tsv, JSON lines; text formats also as .gz and .zst.

Pages: https://parquet.apache.org/docs/file-format/, https://www.rfc-editor.org/rfc/rfc4180 (csv), https://jsonlines.org. Rows are read
one after another; a whole table is never in memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import open_file
from ofa_jax.prepare.layouts.streams import COMPRESSED, Damaged, text_lines

TEXT_FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson")
ENDINGS = (*(form + packed for form in TEXT_FORMATS for packed in COMPRESSED), *TEXT_FORMATS, ".parquet")
Quoted = Literal["csv", "always", "never"]
_BATCH = 64  # rows of a parquet file that are decoded at a time; they may hold pictures
_LONGEST_CELL = (1 << 31) - 1  # csv refuses cells of 128 KiB otherwise, less than a picture in base64


class Problem(NamedTuple):
    """What is wrong with one row."""

    field: str
    found: str
    expected: str


Row = tuple[int, "dict[str, Any] | Problem"]  # its number, from 1, and its values by column


def read_rows(path: str, wanted: Sequence[str], *, header: Sequence[str] = (), quoted: Quoted = "csv", form: str = "") -> Iterator[Row]:
    """Yields the rows of a table with the values of the `wanted` columns, or what is wrong with them.

    header: names of the columns of a csv or tsv file that has no line of names. quoted: whether cells of a csv or tsv file may stand in
    quotes; "csv": in csv files only. form: what the table is (".tsv") whatever the file's ending.
    Texts of csv and tsv files keep bytes that are no UTF-8 as lone surrogates.
    Raises `DataError` when a column or a package is missing, `Damaged` when the file is cut, OSError when it cannot be read.
    """
    form = form or table_format(path)
    if form == ".parquet":
        yield from _parquet_rows(path, wanted)
    elif form in (".csv", ".tsv"):
        in_quotes = quoted == "always" or (quoted == "csv" and form == ".csv")
        yield from _delimited_rows(path, wanted, header, "," if form == ".csv" else "\t", in_quotes)
    else:
        yield from _json_rows(path, wanted)


def table_format(path: str) -> str:
    """Returns the ending that says what the table is (".csv"). Raises `DataError` for an unknown one."""
    ending = next((ending for ending in ENDINGS if path.lower().endswith(ending)), "")
    if not ending:
        raise DataError(f"{path}: found the ending of no table, expected {', '.join(ENDINGS)}")
    return f".{ending.split('.')[1]}"


def _check_columns(path: str, wanted: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{path}: column {', '.join(missing)}: found columns {', '.join(found) or '(none)'}, expected {', '.join(wanted)}")


# ---------------------------------------------------------------------------------------------------------------------------- parquet


def _parquet_rows(path: str, wanted: Sequence[str]) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path}: found no pyarrow, expected it for .parquet files; install requirements-prepare.txt") from None
    number = 0
    with open_file(path) as file:
        try:
            table = pq.ParquetFile(file)
            _check_columns(path, wanted, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=_BATCH, columns=list(wanted)):
                for row in range(batch.num_rows):
                    number += 1
                    yield number, _parquet_row(batch, row, wanted)
        except pa.ArrowInvalid as error:
            raise Damaged(f"a parquet file that cannot be read after row {number} ({_first_sentence(error)})") from error
        except OSError as error:
            if error.errno is not None:
                raise
            # Arrow says so of bytes that do not decompress; errors of the disk have a number.
            raise Damaged(f"a parquet file that cannot be read after row {number} ({_first_sentence(error)})") from error


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0]


def _parquet_row(batch: Any, row: int, wanted: Sequence[str]) -> dict[str, Any] | Problem:
    values = {}
    for name in wanted:
        try:
            values[name] = batch.column(name)[row].as_py()
        except UnicodeDecodeError as error:
            return Problem(name, f"bytes that are no UTF-8 ({error.reason} at {error.start})", "text in UTF-8")
    return values


# ------------------------------------------------------------------------------------------------------------------------- csv and tsv


def _delimited_rows(path: str, wanted: Sequence[str], header: Sequence[str], delimiter: str, quoted: bool) -> Iterator[Row]:
    rows = _cells(path, delimiter, quoted)
    if not header:
        first = next(rows, None)
        if first is None:
            raise Damaged("a table without a line of names")
        if isinstance(first, Problem):
            raise DataError(f"{path}: found {first.found} in the line of names, expected {', '.join(wanted)}")
        header = first
    _check_columns(path, wanted, header)
    places = {name: header.index(name) for name in wanted}
    for number, cells in enumerate(rows, 1):
        if isinstance(cells, Problem):
            yield number, cells
        elif len(cells) != len(header):
            yield number, Problem("(row)", f"{len(cells)} cells", f"{len(header)}: {', '.join(header)}")
        else:
            yield number, {name: cells[place] for name, place in places.items()}


def _cells(path: str, delimiter: str, quoted: bool) -> Iterator[list[str] | Problem]:
    """Yields the cells of every line that is not empty; a cell in quotes may go over several lines."""
    lines = _decoded_lines(path)
    if not quoted:
        for line in lines:
            if line := line.rstrip("\r\n"):
                yield line.split(delimiter)
        return
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Problem("(row)", f"{error} in lines {first} to {reader.line_num}", "cells as RFC 4180 writes them")
            continue
        if cells:
            yield cells


def _decoded_lines(path: str) -> Iterator[str]:
    for begin, line in text_lines(path):
        text = line.decode("utf-8", "surrogateescape") + "\n"
        yield text.removeprefix("\ufeff") if begin == 0 else text


# -------------------------------------------------------------------------------------------------------------------------- JSON lines


def _json_rows(path: str, wanted: Sequence[str]) -> Iterator[Row]:
    checked = False
    for number, (_, line) in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield number, Problem("(row)", f"bytes that are no UTF-8 ({error.reason} at {error.start})", "JSON in UTF-8")
            continue
        except (ValueError, RecursionError) as error:
            yield number, Problem("(row)", f"{line[:40]!r} ({error})", "a JSON object")
            continue
        if not isinstance(raw, dict):
            yield number, Problem("(row)", f"{type(raw).__name__} {line[:40]!r}", "a JSON object")
            continue
        if not checked:
            _check_columns(path, wanted, list(raw))  # a name that is wrong for the first row is wrong for all
            checked = True
        missing = [name for name in wanted if name not in raw]
        if missing:
            yield (
                number,
                Problem(", ".join(missing), f"fields {', '.join(raw) or '(none)'}", "them, or null where there is nothing"),
            )
        else:
            yield number, {name: raw[name] for name in wanted}
