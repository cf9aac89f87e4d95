"""Files that leaderboards take: VQA answers (EvalAI), COCO captions, COCO detections (the result formats of their evaluation servers).

A file is written whole or not at all, and only for exactly the expected ids: a server scores what is missing as wrong, or refuses the
whole file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import DataError
from ofa_jax.metrics.acc_at_iou import BoxLike

ScoredBox = tuple[int, BoxLike, float]  # category id, x0 y0 x1 y1 in pixels of the original picture, score

_SHOWN = 5  # ids that an error names of each kind


def write_vqa_answers(path: Path, answers: Sequence[tuple[int, str]], *, expected_ids: Iterable[int]) -> None:
    """Writes [{"question_id", "answer"}] of (question id, answer) pairs, in their order.

    Raises `DataError`, and leaves an older file as it was, where an id is missing, unexpected or given twice.
    """
    _check_own(path, "question", [i for i, _ in answers], expected_ids)
    _write(path, [{"question_id": int(i), "answer": _text(path, "question", i, answer)} for i, answer in answers])


def write_captions(path: Path, captions: Sequence[tuple[int, str]], *, expected_ids: Iterable[int]) -> None:
    """Writes [{"image_id", "caption"}] of (image id, caption) pairs, in their order. Raises as `write_vqa_answers`."""
    _check_own(path, "image", [i for i, _ in captions], expected_ids)
    _write(path, [{"image_id": int(i), "caption": _text(path, "image", i, caption)} for i, caption in captions])


def write_detections(path: Path, detections: Sequence[tuple[int, Sequence[ScoredBox]]], *, expected_ids: Iterable[int]) -> None:
    """Writes [{"image_id", "category_id", "bbox": [x, y, width, height], "score"}] of (image id, its objects) pairs, in their order.

    An image where nothing was found is given with no objects; it must not be left out. A side that is turned inside out is written as
    0: such a box overlaps nothing and counts as wrong, while pycocotools would ignore one of negative area. Raises as
    `write_vqa_answers`, and where a coordinate or score is no finite number.
    """
    _check_own(path, "image", [i for i, _ in detections], expected_ids)
    rows = []
    for image_id, objects in detections:
        for category_id, box, score in objects:
            x0, y0, x1, y1 = (float(v) for v in box)
            if not all(math.isfinite(v) for v in (x0, y0, x1, y1, score)):
                raise DataError(f"{path}: image {image_id}: found box {(x0, y0, x1, y1)} of score {score}, expected finite numbers")
            bbox = [x0, y0, max(x1 - x0, 0.0), max(y1 - y0, 0.0)]
            rows.append({"image_id": int(image_id), "category_id": _id(path, "category", category_id), "bbox": bbox, "score": float(score)})
    _write(path, rows)


def _id(path: Path, kind: str, i: Any) -> int:
    if isinstance(i, bool) or not hasattr(i, "__index__"):  # NumPy's integers are fine, "12" and 12.0 are not
        raise DataError(f"{path}: found {kind} id {i!r} of type {type(i).__name__}, expected an integer")
    return int(i)


def _text(path: Path, kind: str, i: int, text: Any) -> str:
    if not isinstance(text, str):
        raise DataError(f"{path}: {kind} {i}: found {str(text)[:60]!r} of type {type(text).__name__}, expected a text")
    return text


def _check_own(path: Path, kind: str, found: Sequence[int], expected_ids: Iterable[int]) -> None:
    found = [_id(path, kind, i) for i in found]
    check_ids(f"{path} is not written", kind, found, [_id(path, f"expected {kind}", i) for i in expected_ids])


def check_ids(head: str, kind: str, found: Sequence[int], expected_ids: Iterable[int]) -> None:
    """Raises `DataError` unless every expected id, and no other, is found exactly once.

    It is one sentence that begins with `head` and has every kind of fault, how often it occurs, and the first few ids of each. `kind`
    is what the ids are of.
    """
    counts, expected = Counter(found), set(expected_ids)
    faults = {
        "missing": [i for i in sorted(expected) if i not in counts],
        "unexpected": [i for i in counts if i not in expected],
        "repeated": [i for i, count in counts.items() if count > 1],
    }
    if any(faults.values()):
        named = [f"{len(ids)} {fault} ({first_few(ids)})" for fault, ids in faults.items() if ids]
        raise DataError(f"{head}: found {', '.join(named)} among {len(found)} {kind} ids, expected each of {len(expected)} once")


def first_few(ids: Sequence[Any]) -> str:
    """The first few of `ids`, for a sentence."""
    return ", ".join(str(i) for i in ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(rows) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}), expected a writable folder with enough space") from error
    finally:
        with contextlib.suppress(OSError):  # it is gone, or its folder never was there
            partial.unlink()
