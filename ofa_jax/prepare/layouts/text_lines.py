"""A corpus of documents as JSON lines, compressed or not: the Pile and what is made like it.

Page: https://pile.eleuther.ai (Gao et al. 2020, arXiv 2101.00027). Every line of `00.jsonl.zst`, ... is an object with the document in
"text" and the name of its part in "meta"."pile_set_name".
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from ofa_jax.data.records import RecordError, TextRecord
from ofa_jax.prepare.layouts.base import Found, Input, Layout, required
from ofa_jax.prepare.layouts.streams import CutOff, lines, stem


@dataclasses.dataclass(frozen=True)
class TextLines(Layout):
    """Each file is one input. A document becomes passages of at most `max_characters`, cut at white space, because a task reads the first
    512 tokens only; a passage's id is `<file>/<line>/<number>`."""

    KIND: ClassVar[Literal["image", "text"]] = "text"
    PAGE: ClassVar[str] = "https://pile.eleuther.ai"

    patterns: tuple[str, ...] = ("**/*.jsonl.zst", "**/*.jsonl.gz", "**/*.jsonl")
    field: str = "text"
    keep_sets: tuple[str, ...] = ()  # of "meta"."pile_set_name"; empty: all
    drop_sets: tuple[str, ...] = ()
    max_characters: int = 2_400  # some 512 tokens of English, of which 256 are read
    min_characters: int = 64  # shorter passages are left out: they are ends of documents
    split: str = "train"

    def inputs(self, gathered: Path) -> list[Input]:
        del gathered
        root = self.source.rstrip("/")
        return [Input(path.removeprefix(root).strip("/").replace("/", "_"), self.split, path) for path in required(self, *self.patterns)]

    def read(self, item: Input) -> Iterator[Found]:
        name = stem(item.name)
        number = -1
        try:
            for number, line in lines(item.path):
                yield from self._document(f"{name}/{number}", line)
        except CutOff as error:
            yield self._error(f"{name}/{number + 1}", "(file)", str(error), f"{item.path} whole")

    def _error(self, record: str, field: str, found: str, expected: str, reason: str = "schema") -> RecordError:
        return RecordError(dataset=self.dataset, record=record, reason=reason, field=field, found=found, expected=expected)

    def _document(self, record: str, line: bytes) -> Iterator[Found]:
        try:
            document = json.loads(line)
            text = document[self.field]
            if not isinstance(text, str):
                raise KeyError(self.field)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            yield self._error(record, "(line)", f"{line[:40]!r} ({error})", "an object as JSON in UTF-8")
            return
        except (KeyError, TypeError):
            found = ", ".join(document) if isinstance(document, dict) else type(document).__name__
            yield self._error(record, self.field, f"a line with {found or 'nothing'}", f"a text in field {self.field}")
            return
        if self.keep_sets or self.drop_sets:
            meta = document.get("meta")
            part = meta.get("pile_set_name", "") if isinstance(meta, dict) else ""
            if (self.keep_sets and part not in self.keep_sets) or part in self.drop_sets:
                return  # of another part of the corpus than was asked for
        if not text.strip():
            yield self._error(record, self.field, repr(text[:40]), "at least one word", "empty_text")
        for number, passage in enumerate(self._passages(text)):
            yield TextRecord(f"{record}/{number}", self.dataset, passage)

    def _passages(self, text: str) -> Iterator[str]:
        start = 0
        while start < len(text):
            end = start + self.max_characters
            if end < len(text):
                end = max((text.rfind(space, start, end) for space in " \n\t"), default=-1)
                end = end if end > start else start + self.max_characters
            passage = text[start:end].strip()
            if passage and (len(passage) >= self.min_characters or start == 0):
                yield passage
            start = end
