"""OFA's own pretraining files: tables of tab-separated columns without a header, pictures as base64 in one of them.

Page: https://github.com/OFA-Sys/OFA/blob/main/datasets.md and the readers in data/pretrain_data/unify_dataset.py.
`vision_language_examples.tsv` has uniq_id, image, caption, question, refs or answer, objects, data set, type; `text_examples.tsv` uniq_id,
text; `image_examples.tsv` uniq_id, image of 256 x 256 px, 256 codes of its centre; `detection_examples.tsv` uniq_id, image, objects. Lists
are joined by `&&`, an answer stands behind its weight and `|!+`. Pictures come in the standard alphabet of base64 and in that of URLs.
Beside them lies `negative_sample/`.
"""

from __future__ import annotations

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption, ImageRecord, Question, RecordError, TextRecord
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Layout, checked_record, required
from ofa_jax.prepare.layouts.streams import CutOff, from_base64, lines
from ofa_jax.prepare.storage import file_size, open_file

SEPARATOR, WEIGHT_SEPARATOR = "&&", "|!+"
NUM_CODES, CODES_A_PICTURE = 8_192, 256
_TYPES = {"caption": "caption", "qa": "question", "visual_grounding": "grounding"}  # of column 7 -> row kind


@dataclasses.dataclass(frozen=True)
class _Table(Layout):
    """What the four files share. A file is read in parts of `part_bytes`, because one holds terabytes."""

    PAGE: ClassVar[str] = "https://github.com/OFA-Sys/OFA/blob/main/datasets.md"
    COLUMNS: ClassVar[tuple[str, ...]] = ()

    file: str = ""
    part_bytes: int = 1 << 30
    split: str = "train"

    def inputs(self, gathered: Path) -> list[Input]:
        del gathered
        found = []
        for path in required(self, self.file):
            size = file_size(path)
            if not size:
                raise DataError(f"{path}: found an empty file, expected lines of {len(self.COLUMNS)} columns")
            name = path.rpartition("/")[2].removesuffix(".tsv")
            starts = range(0, size, self.part_bytes)
            found += [
                Input(f"{name}-{number:05d}", self.split, path, (start, min(start + self.part_bytes, size)))
                for number, start in enumerate(starts)
            ]
        return found

    def read(self, item: Input) -> Iterator[Found]:
        first, end = item.span or (0, None)
        try:
            for number, line in lines(item.path, first=first, end=end):
                yield from self._line(f"{item.name}/{number}", line)
        except CutOff as error:
            yield self._error(item.name, "(file)", str(error), f"{item.path} whole")

    def _line(self, place: str, line: bytes) -> Iterator[Found]:
        columns = line.split(b"\t")
        if len(columns) != len(self.COLUMNS):
            yield self._error(place, "(line)", f"{len(columns)} columns", f"{len(self.COLUMNS)}: {', '.join(self.COLUMNS)}")
            return
        texts: dict[str, str] = {}
        for name, value in zip(self.COLUMNS, columns, strict=True):
            if name == "image":
                continue
            try:
                texts[name] = value.decode()
            except UnicodeDecodeError:
                yield self._error(texts.get("uniq_id", place), name, f"{value[:40]!r}", "text in UTF-8")
                return
        # An id need not be unique in the official files, as one picture has several lines: its place is.
        record = f"{place}/{texts['uniq_id']}"
        image = b""
        if "image" in self.COLUMNS and self._wanted(texts):
            try:
                image = from_base64(columns[self.COLUMNS.index("image")])
            except ValueError as error:
                found, _, expected = str(error).removeprefix("found ").rpartition(", expected ")
                yield self._error(record, "image", found, expected, "image")
                return
        try:
            yield from self._records(record, texts, image)
        except _Wrong as wrong:
            yield self._error(record, *wrong.args)

    def _wanted(self, texts: dict[str, str]) -> bool:
        del texts
        return True

    @abstractmethod
    def _records(self, record: str, texts: dict[str, str], image: bytes) -> Iterator[Found]:
        """Yields what a line gives. Raises `_Wrong`."""

    def _error(self, record: str, field: str, found: str, expected: str, reason: str = "schema") -> RecordError:
        return RecordError(dataset=self.dataset, record=record, reason=reason, field=field, found=found, expected=expected)


class _Wrong(Exception):
    """A column that is not what it should be: field, found, expected."""


@dataclasses.dataclass(frozen=True)
class OfaPairs(_Table):
    """`vision_language_examples.tsv`; a data set holds one kind of row, so lines of other types belong to other data sets."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq_id", "image", "caption", "question", "refs", "gt_objects", "dataset_name", "type")

    file: str = "vision_language_examples.tsv"
    type: Literal["caption", "qa", "visual_grounding"] = "caption"
    dataset_name: str = ""  # of column 6; empty: all

    def _wanted(self, texts: dict[str, str]) -> bool:
        return texts["type"] == self.type and self.dataset_name in ("", texts["dataset_name"])

    def _records(self, record: str, texts: dict[str, str], image: bytes) -> Iterator[Found]:
        if texts["type"] not in _TYPES:
            raise _Wrong("type", repr(texts["type"]), ", ".join(_TYPES))
        if not self._wanted(texts):
            return
        objects = tuple(word for word in texts["gt_objects"].split(SEPARATOR) if word.strip())
        if self.type == "caption":
            item = Annotated(record, "", captions=(Caption(texts["caption"], objects),))
        elif self.type == "qa":
            answer, weight = best_answer(texts["refs"])
            item = Annotated(record, "", questions=(Question(texts["question"], answer, weight),))
        else:
            item = Annotated(record, "", regions=((texts["caption"], _numbers("refs", texts["refs"])),))
        yield from checked_record(self, item, image)


@dataclasses.dataclass(frozen=True)
class OfaTexts(_Table):
    """`text_examples.tsv`."""

    KIND: ClassVar[Literal["image", "text"]] = "text"
    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq_id", "text")

    file: str = "text_examples.tsv"

    def _records(self, record: str, texts: dict[str, str], image: bytes) -> Iterator[Found]:
        if not texts["text"].strip():
            raise _Wrong("text", repr(texts["text"][:40]), "at least one word", "empty_text")
        yield TextRecord(record, self.dataset, texts["text"])


@dataclasses.dataclass(frozen=True)
class OfaImages(_Table):
    """`image_examples.tsv`: its records hold their codes."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq_id", "image", "code")
    NUM_CODES: ClassVar[int] = NUM_CODES

    file: str = "image_examples.tsv"

    def _records(self, record: str, texts: dict[str, str], image: bytes) -> Iterator[Found]:
        written = texts["code"].split()
        if len(written) != CODES_A_PICTURE or not all(code.isascii() and code.isdigit() for code in written):
            raise _Wrong("code", f"{len(written)} words starting with {texts['code'][:20]!r}", f"{CODES_A_PICTURE} integers")
        codes = np.array(written, np.int32)
        if codes.max() >= NUM_CODES:
            raise _Wrong("code", str(codes.max()), f"0 to {NUM_CODES - 1}", "token_range")
        for found in checked_record(self, Annotated(record, ""), image):
            yield dataclasses.replace(found, codes=codes) if isinstance(found, ImageRecord) else found


@dataclasses.dataclass(frozen=True)
class OfaDetection(_Table):
    """`detection_examples.tsv`."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("uniq_id", "image", "label")

    file: str = "detection_examples.tsv"

    def _records(self, record: str, texts: dict[str, str], image: bytes) -> Iterator[Found]:
        objects = []
        for written in filter(None, texts["label"].split(SEPARATOR)):
            values = written.split(",", 5)  # the name may hold commas
            if len(values) != 6:
                raise _Wrong("label", repr(written[:60]), "x0,y0,x1,y1,number,name")
            objects.append((values[5], _numbers("label", ",".join(values[:4]))))
        yield from checked_record(self, Annotated(record, "", objects=objects), image)


def best_answer(refs: str) -> tuple[str, float]:
    """Returns the answer of the largest weight in `weight|!+answer&&...` and that weight; the first of equal ones."""
    best: tuple[str, float] | None = None
    for written in refs.split(SEPARATOR):
        weight, separator, answer = written.partition(WEIGHT_SEPARATOR)
        try:
            value = float(weight) if separator else None
        except ValueError:
            value = None
        if value is None:
            raise _Wrong("refs", repr(written[:60]), f"weight{WEIGHT_SEPARATOR}answer")
        if best is None or value > best[1]:
            best = answer, value
    assert best is not None, refs
    return best


def _numbers(field: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 4:
        raise _Wrong(field, repr(text[:60]), "four numbers x0,y0,x1,y1")
    return values


def read_negative_samples(folder: str) -> dict[str, Any]:
    """Returns what wrong captions and answers are drawn from, as `negatives.json` has it, from the three files of `negative_sample/`.

    Blank lines are dropped. Raises `DataError` for a file that is missing or is not what it should be.
    """

    def read(name: str) -> str:
        path = f"{folder.rstrip('/')}/{name}"
        try:
            with open_file(path) as file:
                return file.read().decode()
        except FileNotFoundError:
            raise DataError(f"{path}: found no such file, expected the negative samples of OFA's release") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: found bytes that are no text ({error}), expected UTF-8") from None

    try:
        answers = json.loads(read("type2ans.json"))
    except json.JSONDecodeError as error:
        raise DataError(f"{folder}/type2ans.json: found no JSON ({error}), expected an object of lists of answers") from None
    whole = isinstance(answers, dict) and all(isinstance(v, list) and all(isinstance(a, str) for a in v) for v in answers.values())
    if not whole or "other" not in answers:
        raise DataError(f"{folder}/type2ans.json: found {str(answers)[:60]!r}, expected an object of lists of answers with the key other")
    return {
        "captions": [line for line in read("all_captions.txt").split("\n") if line.strip()],
        "objects": [line for line in read("object.txt").split("\n") if line.strip()],
        "answers": {kind: [answer for answer in values if answer.strip()] for kind, values in answers.items()},
    }
