"""What a layout is: how a public data set lies on disk, and how it is read, input by input, into records.

A layout is a frozen dataclass, because its fields are the options that decide a build, and it pickles, because workers read. It names
inputs (files, or parts of one) and reads each into records, always the same in the same order. What cannot be used comes as a
`RecordError` in its place: nothing is left out without a word. Input and output errors are raised, for the caller to try again.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np
import simplejpeg
from PIL import Image

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import (
    Box,
    Caption,
    DetectedObject,
    ImageRecord,
    Question,
    Record,
    RecordError,
    Region,
    WeightedAnswer,
)
from ofa_jax.data.storage import as_path, list_files, open_file, read_bytes
from ofa_jax.data.transforms.image import DECODE_ERRORS, FORMATS, MAX_PIXELS, decode_image

Found = Record | RecordError
Kind = Literal["image", "text", "labelled_text"]  # of records: the keys of `data.records.FEATURES`
Progress = Callable[[str], None]
_LEAST_LEFT = 0.5  # share of a box that must lie inside the picture; what sticks out is cut off, as annotators draw past borders


@dataclasses.dataclass(frozen=True)
class Input:
    """One input shard: what a worker reads at a time."""

    name: str  # unique in the dataset and the same whenever it is listed; files of each pass are named after it, so it has no "/"
    split: str
    path: str  # a file or an address of fsspec; errors name it
    span: tuple[int, int] | None = None  # of a large file of lines: those that begin in these bytes, first to one past the last


@dataclasses.dataclass(frozen=True)
class Layout(ABC):
    """Base of all layouts. `source` is the folder (or address) that holds the data set as its makers publish it."""

    source: str
    dataset: str  # name of what is made, and of the records

    KIND: ClassVar[Kind] = "image"
    PAGE: ClassVar[str] = ""  # the public page that describes the layout
    NUM_CODES: ClassVar[int] = 0  # image codes that its records may hold; 0: they hold none

    def gather(self, folder: Path, progress: Progress) -> None:  # noqa: B027 (most layouts have nothing to gather)
        """Writes what `inputs` needs into the empty `folder`; called once, before `inputs`. For layouts whose annotations of all pictures
        lie in one file: they are grouped by picture into parts (`write_parts`), so that a worker never reads the whole.
        """

    @abstractmethod
    def inputs(self, gathered: Path) -> list[Input]:
        """Returns all inputs, in a fixed order. `gathered` is the folder that `gather` filled. Raises `DataError` when files of the layout
        are missing."""

    @abstractmethod
    def read(self, item: Input) -> Iterator[Found]:
        """Yields the records of an input; what cannot be used is a `RecordError` in its place. Raises OSError when it cannot be read."""

    def picture_key(self, record_id: str) -> str:
        """Returns the name by which other data sets know the picture of a record ("coco/391895"); "" where it has none.

        The leakage filter compares these names, beside the pictures themselves.
        """
        return ""

    def fail(self, record: str, reason: str, field: str, found: str, expected: str) -> NoReturn:
        """Raises the `RecordError` of a record of this dataset."""
        raise RecordError(dataset=self.dataset, record=record, reason=reason, field=field, found=found, expected=expected)


def image_size(data: bytes) -> tuple[int, int]:
    """Returns (width, height) from the header of an encoded picture. Raises ValueError with what was found and expected.

    Animated files are refused: a pair names one picture. The EXIF orientation is not applied (boxes are pixels of the stored picture).
    """
    if not data:
        raise ValueError("found no bytes, expected a picture")
    try:
        if data[:2] == b"\xff\xd8":
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        else:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
                if getattr(picture, "n_frames", 1) != 1:
                    raise ValueError(f"found an animation of {picture.n_frames} frames, expected one picture")  # type: ignore[attr-defined]
    except DECODE_ERRORS as error:
        if str(error).startswith("found "):
            raise
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(f"found {len(data)} bytes starting with {data[:8].hex(' ')} ({reason}), expected a picture") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"found {width} x {height} pixels, expected at most {MAX_PIXELS}")
    return width, height


@dataclasses.dataclass(frozen=True)
class Annotated:
    """One picture of a data set with what is said of it, before any check. Boxes are x0 y0 x1 y1 in its pixels.

    relative: boxes are shares of the picture's width and height instead. crop: the record's picture is this part of the picture (in its
    pixels), to whole pixels outwards and encoded again, as JPEG of quality 95 without chroma subsampling; boxes are those of the part.
    """

    record_id: str
    image: str  # path of the picture below the layout's source
    captions: Sequence[Caption] = ()
    regions: Sequence[tuple[str, Sequence[float]]] = ()
    questions: Sequence[Question] = ()
    objects: Sequence[tuple[str, Sequence[float]]] = ()
    relative: bool = False
    crop: Sequence[float] | None = None


def checked_record(layout: Layout, item: Annotated, image: bytes) -> Iterator[Found]:
    """Yields a `RecordError` for every item of `item` that cannot be used, then the record of the others; no record when the picture cannot
    be used (reason "image"), or when there were items and none is left ("empty").

    A box that sticks out of the picture is cut at the border; one that has half of its area outside, or no area, is an error.
    """

    def error(reason: str, field: str, found: str, expected: str) -> RecordError:
        return RecordError(dataset=layout.dataset, record=item.record_id, reason=reason, field=field, found=found, expected=expected)

    try:
        width, height = image_size(image)
    except ValueError as problem:
        found, _, expected = str(problem).removeprefix("found ").rpartition(", expected ")
        yield error("image", "image", found, expected)
        return
    if item.crop is not None:
        part = cut_box(item.crop, width, height)
        if part is None:
            yield error("box_outside", "crop", _listed(item.crop), f"at least half of an area within {width}x{height}")
            return
        try:
            image, width, height = _cropped(image, part)
        except ValueError as problem:
            found, _, expected = str(problem).removeprefix("found ").rpartition(", expected ")
            yield error("image", "image", found, expected)
            return

    def boxed(field: str, pairs: Iterable[tuple[str, Sequence[float]]]) -> Iterator[tuple[str, Box] | RecordError]:
        for number, (text, values) in enumerate(pairs):
            if not text.strip():
                yield error("empty_text", f"{field}[{number}].text", repr(text), "at least one word")
                continue
            pixels = [value * side for value, side in zip(values, (width, height) * 2, strict=True)] if item.relative else values
            inside = cut_box(pixels, width, height)
            if inside is None:
                yield error("box_outside", f"{field}[{number}].box", _listed(pixels), f"at least half of an area within {width}x{height}")
            else:
                yield text, inside

    captions, questions = [], []
    for number, caption in enumerate(item.captions):
        if caption.text.strip():
            captions.append(caption)
        else:
            yield error("empty_text", f"captions[{number}].text", repr(caption.text), "at least one word")
    for number, question in enumerate(item.questions):
        if not question.question.strip() or not question.answer.strip():
            yield error(
                "empty_text", f"questions[{number}]", f"{question.question!r} answered {question.answer!r}", "at least one word in both"
            )
        elif not 0 < question.confidence <= 1:
            yield error("confidence", f"questions[{number}].confidence", repr(question.confidence), "more than 0 and at most 1")
        elif bad := [target for target in question.targets if not target.answer.strip() or not 0 < target.weight <= 1]:
            yield error("confidence", f"questions[{number}].targets", repr(tuple(bad[0])), "a word, and a weight above 0 and at most 1")
        else:
            questions.append(question)
    regions, objects = [], []
    for checked in boxed("regions", item.regions):
        if isinstance(checked, RecordError):
            yield checked
        else:
            regions.append(Region(*checked))
    for checked in boxed("objects", item.objects):
        if isinstance(checked, RecordError):
            yield checked
        else:
            objects.append(DetectedObject(*checked))
    if (item.captions or item.regions or item.questions or item.objects) and not (captions or regions or questions or objects):
        yield error("empty", "(record)", "no usable annotation", "at least one")
        return
    yield ImageRecord(
        item.record_id, layout.dataset, image, width, height, tuple(captions), tuple(regions), tuple(questions), tuple(objects)
    )


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _cropped(image: bytes, part: Box) -> tuple[bytes, int, int]:
    """Returns (JPEG file, width, height) of a part of a picture. Raises ValueError with what was found and expected."""
    x0, y0, x1, y1 = math.floor(part.x0), math.floor(part.y0), math.ceil(part.x1), math.ceil(part.y1)
    pixels = np.ascontiguousarray(_pixels(image)[y0:y1, x0:x1])
    return simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB", colorsubsampling="444"), x1 - x0, y1 - y0


@functools.lru_cache(maxsize=1)  # parts of one picture follow each other
def _pixels(image: bytes) -> np.ndarray:
    return decode_image(image)


def cut_box(values: Sequence[float], width: int, height: int) -> Box | None:
    """Returns the part of x0 y0 x1 y1 inside the picture; None for a box without area or with half of it or more outside."""
    if len(values) != 4 or not all(-1e9 < value < 1e9 for value in values):  # NaN fails too
        return None
    x0, y0, x1, y1 = values
    if x1 <= x0 or y1 <= y0:
        return None
    cut = Box(max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if cut.x1 <= cut.x0 or cut.y1 <= cut.y0:
        return None
    left = (cut.x1 - cut.x0) * (cut.y1 - cut.y0) / ((x1 - x0) * (y1 - y0))
    return cut if left > _LEAST_LEFT else None


# ---------------------------------------------------------------------------------------------------- annotations grouped by picture

_PART_PICTURES = 2_000


def write_parts(folder: Path, split: str, items: Iterable[Annotated], *, per_part: int = _PART_PICTURES) -> None:
    """Writes pictures with their annotations into `folder/<split>-00000.jsonl`, ..., `per_part` pictures each, in the order given."""
    part = 0
    lines: list[str] = []

    def flush() -> None:
        nonlocal part
        (folder / f"{split}-{part:05d}.jsonl").write_text("".join(lines), encoding="utf-8")
        part += 1
        lines.clear()

    for item in items:
        lines.append(json.dumps(dataclasses.asdict(item), ensure_ascii=False, separators=(",", ":")) + "\n")
        if len(lines) == per_part:
            flush()
    if lines:
        flush()


LEFT_OUT = "left_out.json"  # in the folder that `gather` fills: {split: {what: how many}}, which the manifest repeats


def write_left_out(folder: Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Writes how many of what `gather` left out of each split, so that the manifest can say it."""
    (folder / LEFT_OUT).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


def part_inputs(gathered: Path) -> list[Input]:
    """Returns the inputs that `write_parts` wrote, by split and number."""
    return [Input(path.stem, path.stem.rpartition("-")[0], str(path)) for path in map(as_path, list_files(str(gathered), "*.jsonl"))]


def read_part(layout: Layout, item: Input) -> Iterator[Found]:
    """Yields the records of one part; a missing picture is a `RecordError` of reason "image", one of which nothing is said of "empty"."""
    last, image = "", b""
    for line in read_bytes(item.path).decode().split("\n")[:-1]:  # texts may hold other ends of lines
        annotated = _annotated(json.loads(line))
        if not (annotated.captions or annotated.regions or annotated.questions or annotated.objects):
            yield RecordError(
                dataset=layout.dataset,
                record=annotated.record_id,
                reason="empty",
                field="(record)",
                found="no annotation",
                expected="at least one",
            )
            continue
        address = f"{layout.source.rstrip('/')}/{annotated.image}"
        try:
            if address != last:  # parts of one picture follow each other
                with open_file(address) as file:
                    image = file.read()
                last = address
        except FileNotFoundError:
            yield RecordError(
                dataset=layout.dataset,
                record=annotated.record_id,
                reason="image",
                field="image",
                found="no such file",
                expected=f"the picture {address}",
            )
            continue
        yield from checked_record(layout, annotated, image)


def _annotated(raw: dict[str, Any]) -> Annotated:
    return Annotated(
        raw["record_id"],
        raw["image"],
        captions=tuple(Caption(c["text"], tuple(c["objects"])) for c in raw["captions"]),
        regions=tuple((text, tuple(box)) for text, box in raw["regions"]),
        questions=tuple(map(_question, raw["questions"])),
        objects=tuple((label, tuple(box)) for label, box in raw["objects"]),
        relative=raw["relative"],
        crop=raw["crop"],
    )


def _question(raw: dict[str, Any]) -> Question:
    targets = tuple(WeightedAnswer(*target) for target in raw["targets"])
    return Question(**{**raw, "answers": tuple(raw["answers"]), "targets": targets, "objects": tuple(raw["objects"])})


def required(layout: Layout, *patterns: str) -> list[str]:
    """Returns the files below the layout's source that match any of the glob patterns, sorted. Raises `DataError` when there are none."""
    found = sorted({path for pattern in patterns for path in list_files(layout.source, pattern)})
    if not found:
        raise DataError(f"{layout.dataset}: found no {' or '.join(patterns)} in {layout.source}, expected them as {layout.PAGE} describes")
    return found
