"""The first pass: every record of one input is parsed, its picture decoded, hashed and its texts counted.

The arrays of an input are small (some 300 bytes a record) and stay: later passes decide from them, and the pictures of an evaluation set
are known by them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import heapq
import io
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from ofa_jax.data.records import ImageRecord, LabelledText, Record, RecordError
from ofa_jax.data.transforms.image import decode_image
from ofa_jax.prepare.layouts.base import Input
from ofa_jax.prepare.lengths import LengthCounter, texts_for_negatives
from ofa_jax.prepare.manifest import write_json
from ofa_jax.prepare.passes.arrays import join_ids, save_arrays
from ofa_jax.prepare.passes.options import BuildOptions, Files
from ofa_jax.prepare.picture_hash import COLOURS, GREY_PX, NONE, WORDS, mean_colours, perceptual_hash, short_digest
from ofa_jax.vocab.tokenizer import load_tokenizer

# Arrays of an input's index, one entry a record, in the order in which the layout yields them.
COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    "usable": (np.bool_, ()),  # False: rejected by this pass, after the layout had yielded it
    "record": (np.uint64, ()),  # digest of its id
    "content": (np.uint64, ()),  # digest of its picture and annotations
    "picture": (np.uint64, ()),  # digest of its picture's bytes; 0 for texts
    "key": (np.uint64, ()),  # digest of the picture's name outside the data set (`Layout.picture_key`); 0: none
    "hash": (np.uint64, (WORDS,)),  # perceptual hash of its picture
    "colours": (np.uint8, (COLOURS,)),  # mean colours of its picture
}
CAPTIONS_AN_INPUT = 4_000  # captions that an input offers as negatives: those of the smallest digests, which is a fair sample


@functools.cache
def counter_of(options: BuildOptions) -> LengthCounter:
    """Returns the counter of a build's token lengths; made once a process."""
    return LengthCounter(options.row, dataset=options.layout.dataset, vocab=options.tokenizer, tokenizer=load_tokenizer(options.tokenizer))


def index_input(item: Input, *, options: BuildOptions, files: Files) -> None:
    """Writes the index of one input. Raises OSError when it cannot be read, `DataError` when its layout is not what it should be."""
    counter = counter_of(options)
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    ids: list[str] = []
    lengths: list[np.ndarray] = []
    rejects: list[dict[str, str]] = []
    notices: list[dict[str, str]] = []
    sample = _Sample()
    image_bytes = 0
    for found in options.layout.read(item):
        if isinstance(found, RecordError):
            rejects.append(reject_line(found, stage="read"))
            continue
        name, usable, length, looks = found.record_id, True, np.zeros((len(counter.tasks), 2), np.uint16), NOTHING_SEEN
        try:
            if "\n" in name or not name:
                options.layout.fail(repr(name), "schema", "record_id", repr(name), "an id without line breaks")
            length, looks = counter.count(found), looks_of(found)
            sample.add(found)
            notices += notices_of(found)
        except RecordError as error:
            rejects.append(reject_line(error, stage="index"))
            usable = False
        image = found.image if isinstance(found, ImageRecord) else b""
        key = options.layout.picture_key(name)
        image_bytes += len(image)
        ids.append(name.replace("\n", " "))
        lengths.append(length)
        for column, value in (
            ("usable", usable),
            ("record", short_digest(name.encode())),
            ("content", content_digest(found)),
            ("picture", short_digest(image) if image else 0),
            ("key", short_digest(key.encode()) if key else 0),
            ("hash", looks[0]),
            ("colours", looks[1]),
        ):
            columns[column].append(value)
    arrays = {
        column: np.array(columns[column], dtype).reshape(len(ids), *shape) if ids else np.zeros((0, *shape), dtype)
        for column, (dtype, shape) in COLUMNS.items()
    }
    arrays["lengths"] = np.array(lengths, np.uint16).reshape(len(ids), len(counter.tasks), 2)
    arrays["ids"] = join_ids(ids)
    notes = {"records": len(ids), "image_bytes": image_bytes, "rejects": rejects, "notices": notices, **sample.to_json()}
    write_json(files.index_notes(item), notes)
    save_arrays(files.index(item), arrays)


NOTHING_SEEN = (NONE, np.zeros(COLOURS, np.uint8))


def looks_of(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Returns the perceptual hash, uint64 [4], and the mean colours, uint8 [192], of a record's picture. Decoding it to its last byte shows
    that it is whole.

    Raises `RecordError` for a picture that does not decode."""
    if not isinstance(record, ImageRecord):
        return NOTHING_SEEN
    try:
        pixels = _small_pixels(record.image)
        return perceptual_hash(pixels), mean_colours(pixels)
    except ValueError as error:
        found, _, expected = str(error).removeprefix("found ").rpartition(", expected ")
        raise RecordError(
            dataset=record.dataset, record=record.record_id, reason="image", field="image", found=found or str(error), expected=expected
        ) from error


def _small_pixels(data: bytes) -> np.ndarray:
    """A JPEG is decoded at the smallest size of its transform that the hash can use, several times as fast."""
    if data[:2] == b"\xff\xd8" and simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=GREY_PX, min_width=GREY_PX)
        except ValueError:
            pass  # the decoder below says what is wrong with it
    return decode_image(data)


_UPRIGHT = 1
_ORIENTATION = 274  # the EXIF tag
_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF")  # in JPEG, PNG and WebP files
_HEAD_BYTES = 1 << 16


def notices_of(record: Record) -> list[dict[str, str]]:
    """Returns what a person should know of a record that stays: lines of `notices.jsonl`.

    A picture whose EXIF tag says that viewers turn it stays as it is stored, because boxes are its pixels, and OFA's loader reads it so.
    """
    image = record.image if isinstance(record, ImageRecord) else b""
    if not any(mark in image[:_HEAD_BYTES] for mark in _EXIF_MARKS):
        return []
    with Image.open(io.BytesIO(image)) as picture:
        orientation = picture.getexif().get(_ORIENTATION, _UPRIGHT)
    if orientation == _UPRIGHT:
        return []
    found, expected = f"EXIF orientation {orientation}", f"{_UPRIGHT}; the picture is kept as it is stored, not as viewers turn it"
    reason = "exif_orientation"
    return [{"stage": "index", "record": record.record_id, "reason": reason, "field": "image", "found": found, "expected": expected}]


def content_digest(record: Record) -> int:
    """Returns 64 bits of the digest of what a record holds, its id left out."""
    if isinstance(record, LabelledText):
        return short_digest(repr((record.text, record.text2, record.answer)).encode())
    if not isinstance(record, ImageRecord):
        return short_digest(record.text.encode())
    said = dataclasses.asdict(dataclasses.replace(record, image=b"", record_id="", codes=None))
    return short_digest(repr(sorted(said.items())).encode() + record.image + (b"" if record.codes is None else record.codes.tobytes()))


def reject_line(error: RecordError, *, stage: str) -> dict[str, str]:
    """Returns one line of `rejects.jsonl`."""
    return {
        "stage": stage,
        "record": error.record,
        "reason": error.reason,
        "field": error.field,
        "found": error.found,
        "expected": error.expected,
    }


class _Sample:
    """What an input offers for negatives: a fair sample of its captions, all object words, how often each answer of each kind is given."""

    def __init__(self) -> None:
        self._captions: list[tuple[int, str]] = []  # a heap of the smallest digests, largest first
        self._taken: set[str] = set()
        self._objects: set[str] = set()
        self._answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def add(self, record: Record) -> None:
        captions, objects, answers = texts_for_negatives(record)
        for caption in captions:
            if caption in self._taken:
                continue
            entry = (-short_digest(caption.encode()), caption)
            if len(self._captions) < CAPTIONS_AN_INPUT:
                heapq.heappush(self._captions, entry)
                self._taken.add(caption)
            elif entry > self._captions[0]:
                self._taken.discard(heapq.heapreplace(self._captions, entry)[1])
                self._taken.add(caption)
        self._objects.update(objects)
        for kind, answer in answers:
            self._answers[kind][answer] += 1

    def to_json(self) -> dict[str, Any]:
        return {
            "captions": [caption for _, caption in sorted(self._captions, reverse=True)],
            "objects": sorted(self._objects),
            "answers": {kind: dict(sorted(counts.items())) for kind, counts in sorted(self._answers.items())},
        }
