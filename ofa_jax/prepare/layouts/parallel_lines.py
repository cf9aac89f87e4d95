"""Gigaword and what is stored like it: two parallel files of lines, a text and what is to be written of it.

The common layout is that of UniLM (https://github.com/microsoft/unilm/tree/master/s2s-ft) and of many others: `train.src.txt` with an
article a line and `train.tgt.txt` with its headline in the same line, and the same for `dev` (or `valid`, `validation`) and `test`, which
has headlines too.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import LabelledText, RecordError
from ofa_jax.data.storage import list_files, read_bytes
from ofa_jax.prepare.layouts.base import Found, Input, Kind, Layout, Progress
from ofa_jax.prepare.layouts.streams import file_error, text_lines

_SPLITS = {"train": ("train",), "validation": ("dev", "valid", "validation", "val"), "test": ("test",)}  # split -> names there


@dataclasses.dataclass(frozen=True)
class ParallelLines(Layout):
    """A record a line, named `<split>/<line>` from 1; `text` is the line of the first file, `answer` that of the second.

    Files are read in runs of `lines_per_input` lines. Splits without files are left out; train has to be there.
    """

    KIND: ClassVar[Kind] = "labelled_text"
    PAGE: ClassVar[str] = "https://github.com/microsoft/unilm/tree/master/s2s-ft"

    text_ending: str = ".src.txt"
    answer_ending: str = ".tgt.txt"
    lines_per_input: int = 200_000

    def gather(self, folder: Path, progress: Progress) -> None:
        """Lists the runs of lines and where each begins and ends in both files. Raises `DataError` when a pair of files is incomplete or
        has different numbers of lines, or when there is none of train."""
        if self.lines_per_input < 1:
            raise DataError(f"{self.dataset}: option lines_per_input: found {self.lines_per_input}, expected 1 or more")
        pairs = {split: pair for split, names in _SPLITS.items() if (pair := self._pair(names))}
        if "train" not in pairs:
            raise DataError(
                f"{self.dataset}: found no train{self.text_ending} in {self.source}, expected it beside train{self.answer_ending} as "
                f"{self.PAGE} describes"
            )
        for split, paths in pairs.items():
            (count, texts), (count_of_answers, answers) = (_bounds(self._address(name), self.lines_per_input) for name in paths)
            if count != count_of_answers:
                raise DataError(f"{self._address(paths[1])}: found {count_of_answers:,} lines, expected {count:,} as in {paths[0]}")
            progress(f"{self.dataset}: {count:,} lines of {split}")
            for part, spans in enumerate(zip(texts, answers, strict=True)):
                run = {"split": split, "first": part * self.lines_per_input + 1, "files": paths, "spans": spans}
                (folder / f"{split}-{part:05d}.json").write_text(json.dumps(run) + "\n", encoding="utf-8")

    def _address(self, name: str) -> str:
        return f"{self.source.rstrip('/')}/{name}"

    def _pair(self, names: tuple[str, ...]) -> tuple[str, str] | None:
        """Returns paths of text and answers of one split below the source, None where neither is there. Raises `DataError`."""
        found = [
            (name, ending) for name in names for ending in (self.text_ending, self.answer_ending) if list_files(self.source, name + ending)
        ]
        if not found:
            return None
        if len(found) != 2 or found[0][0] != found[1][0]:
            listed = ", ".join(name + ending for name, ending in found)
            raise DataError(
                f"{self.dataset}: found {listed} in {self.source}, expected a file with {self.text_ending} and one with "
                f"{self.answer_ending} of the same name"
            )
        first, second = (name + ending for name, ending in found)
        return first, second

    def inputs(self, gathered: Path) -> list[Input]:
        paths = list_files(str(gathered), "*.json")
        if not paths:
            raise DataError(f"{self.dataset}: found no runs of lines in {gathered}, expected those that `gather` writes")
        names = [path.rpartition("/")[2].removesuffix(".json") for path in paths]
        found = [Input(name, name.rpartition("-")[0], path) for name, path in zip(names, paths, strict=True)]
        return sorted(found, key=lambda item: (list(_SPLITS).index(item.split), item.name))

    def read(self, item: Input) -> Iterator[Found]:
        run = json.loads(read_bytes(item.path))
        files = [self._address(name) for name in run["files"]]
        if not run["spans"][0][1]:
            yield file_error(self, dataclasses.replace(item, path=files[0]), "a file without lines")
            return
        texts, answers = (text_lines(path, span=tuple(span)) for path, span in zip(files, run["spans"], strict=True))
        for number, (text, answer) in enumerate(itertools.zip_longest(texts, answers, fillvalue=(0, b"")), run["first"]):
            record = f"{item.split}/{number}"
            try:
                first, second = (self._text(record, *pair) for pair in zip(run["files"], (text[1], answer[1]), strict=True))
                yield LabelledText(record, self.dataset, first, "", second)
            except RecordError as error:
                yield error

    def _text(self, record: str, file: str, line: bytes) -> str:
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            self.fail(record, "schema", file, f"bytes that are no UTF-8 ({error.reason} at {error.start})", "text in UTF-8")
        return text or self.fail(record, "empty_text", file, repr(text), "at least one word")


def _bounds(path: str, size: int) -> tuple[int, list[tuple[int, int]]]:
    """Returns how many lines a file has, and the bytes (first, one past the last) of runs of `size` lines; one empty run for an empty
    file."""
    begins, number, end = [0], 0, 0
    for number, (begin, line) in enumerate(text_lines(path), 1):
        if number > 1 and (number - 1) % size == 0:
            begins.append(begin)
        end = begin + len(line) + 1
    return number, list(itertools.pairwise([*begins, end]))
