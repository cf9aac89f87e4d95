"""A corpus of texts, one JSON object a line, in compressed files: the Pile and what is stored like it.

Page: https://pile.eleuther.ai (arXiv 2101.00027). Each line of a `.jsonl.zst` has `text`, one document, and `meta` with
`pile_set_name`, the part of the corpus that it is from.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import RecordError, TextRecord
from ofa_jax.prepare.layouts.base import Found, Input, Kind, Layout, required
from ofa_jax.prepare.layouts.streams import Damaged, file_error, file_inputs, text_lines

_ENDINGS = (".jsonl.zst", ".jsonl.gz", ".jsonl")
_WORD_CHARS = 40  # a place between words is looked for in at least so many characters


@dataclasses.dataclass(frozen=True)
class TextLines(Layout):
    """Each file is one input; a document becomes one or more records `<name of the file>/<line>/<piece>`, counted from 1 and 0."""

    KIND: ClassVar[Kind] = "text"
    PAGE: ClassVar[str] = "https://pile.eleuther.ai"

    pattern: str = ""  # empty: every .jsonl, .jsonl.gz and .jsonl.zst
    split: str = "train"
    field: str = "text"
    include: tuple[str, ...] = ()  # names of parts (meta.pile_set_name) that are taken; empty: all
    exclude: tuple[str, ...] = ()  # names of parts that are not
    max_chars_per_record: int = 4_000  # a longer document is cut between words: the task reads 512 tokens of a record at most

    def inputs(self, gathered: Path) -> list[Input]:
        if self.max_chars_per_record < _WORD_CHARS:
            raise DataError(f"{self.dataset}: max_chars_per_record: found {self.max_chars_per_record}, expected {_WORD_CHARS} or more")
        patterns = (self.pattern,) if self.pattern else tuple(f"**/*{ending}" for ending in _ENDINGS)
        return file_inputs(self, required(self, *patterns), split=self.split, endings=_ENDINGS)

    def read(self, item: Input) -> Iterator[Found]:
        number = 0
        try:
            for number, (_, line) in enumerate(text_lines(item.path), 1):
                record = f"{item.name}/{number}"
                try:
                    document = self._document(record, line)
                except RecordError as error:
                    yield error
                    continue
                for piece, text in enumerate(cut_text(document, self.max_chars_per_record)):
                    yield TextRecord(f"{record}/{piece}", self.dataset, text)
        except Damaged as error:
            yield file_error(self, item, f"{error}, {number} whole lines before it")
            return
        if not number:
            yield file_error(self, item, "a file without lines")

    def _document(self, record: str, line: bytes) -> str:
        """Returns the text of one line; "" where its part is not wanted. Raises `RecordError`."""
        try:
            raw: Any = json.loads(line.decode())
        except UnicodeDecodeError as error:
            self.fail(record, "schema", "(line)", f"bytes that are no UTF-8 ({error.reason} at {error.start})", "JSON in UTF-8")
        except (ValueError, RecursionError) as error:
            self.fail(record, "schema", "(line)", f"{line[:40]!r} ({error})", "a JSON object")
        if not isinstance(raw, dict):
            self.fail(record, "schema", "(line)", f"{type(raw).__name__} {line[:40]!r}", "a JSON object")
        if self.include or self.exclude:
            meta = raw.get("meta")
            name = meta.get("pile_set_name") if isinstance(meta, dict) else None
            if not isinstance(name, str):
                self.fail(record, "schema", "meta.pile_set_name", repr(name), "the name of a part, by which some are included or excluded")
            if (self.include and name not in self.include) or name in self.exclude:
                return ""
        text = raw.get(self.field)
        if not isinstance(text, str):
            found = f"{text!r:.60} in an object of {', '.join(map(str, raw)) or 'no fields'}"
            self.fail(record, "schema", self.field, found, "a text")
        if not text.strip():
            self.fail(record, "empty_text", self.field, f"{text!r:.60}", "at least one word")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.fail(record, "schema", self.field, f"half of a surrogate pair at character {error.start}", "text that UTF-8 can hold")
        return text


def cut_text(text: str, size: int) -> Iterator[str]:
    """Yields pieces of at most `size` characters that together are the text. They end after white space where there is any in the piece;
    pieces of white space alone are left out."""
    begin = 0
    while begin < len(text):
        end = begin + size
        if end < len(text):
            at = end
            while at > begin and not text[at - 1].isspace():
                at -= 1
            end = at if at > begin else end
        piece = text[begin:end]
        if not piece.isspace():
            yield piece
        begin = end
