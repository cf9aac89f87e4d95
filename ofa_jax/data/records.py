"""Typed records: what lies in the shards, checked once when it is read.

One image record carries every annotation that its picture has; a task reads the kind it needs. Boxes are pixels of the stored
picture, x0 y0 x1 y1, origin top left, x1 and y1 exclusive.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """Pixels of the picture it is given with: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclasses.dataclass(frozen=True)
class Caption:
    text: str
    objects: tuple[str, ...] = ()  # object words that occur in the text; used to make negatives


@dataclasses.dataclass(frozen=True)
class Region:
    text: str
    box: Box


@dataclasses.dataclass(frozen=True)
class Question:
    question: str
    answer: str  # the answer of the largest weight
    confidence: float = 1.0  # that weight
    kind: str = "other"  # answer type, for type-aware negatives and for the baseline per question type


@dataclasses.dataclass(frozen=True)
class DetectedObject:
    label: str
    box: Box


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    record_id: str
    dataset: str
    image: bytes  # an encoded JPEG, PNG or WebP file
    width: int
    height: int
    captions: tuple[Caption, ...] = ()
    regions: tuple[Region, ...] = ()
    questions: tuple[Question, ...] = ()
    objects: tuple[DetectedObject, ...] = ()
    codes: np.ndarray | None = None  # int32 [grid * grid], raster order: codes of the central square


@dataclasses.dataclass(frozen=True)
class TextRecord:
    record_id: str
    dataset: str
    text: str


Record = ImageRecord | TextRecord


class RecordError(ValueError):
    """A content error of one record: what the quarantine counts. `str()` is one sentence with record, field, found, expected."""

    def __init__(self, *, dataset: str, record: str, reason: str, field: str, found: str, expected: str):
        super().__init__(f"{dataset} record {record}: field {field}: found {found}, expected {expected}")
        self.dataset, self.record, self.reason = dataset, record, reason
        self.field, self.found, self.expected = field, found, expected
