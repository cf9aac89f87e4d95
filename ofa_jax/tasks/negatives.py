"""Negatives of image-text matching: what `negatives.json` of a dataset holds, and how a wrong caption or answer is drawn from it.

Deviations from the official code, all of which keep a negative from being right after all: an object word is replaced as a whole word
(there, "man" also inside "woman"), a drawn caption must differ from the true one, a count of 0 becomes 1 (there, also -1).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption, Question, load_json
from ofa_jax.data.storage import as_path, exists
from ofa_jax.data.transforms.text import SOURCE_WORDS, pre_caption
from ofa_jax.tasks.base import Negatives, TaskContext

SWAP_ABOVE = 0.6  # a caption with object words gets one of them swapped when the draw is above: 40 %
COUNT_KIND = "how many"  # the answer kind whose numbers are moved by one
_TRIES = 16


def load_negatives(data_dir: str | os.PathLike[str], dataset: str) -> Negatives:
    """Reads `data_dir/dataset/negatives.json`; a dataset without that file has no negatives, which is an error only once one is drawn.

    Raises DataError when the file does not have the three fields with lists of strings.
    """
    path = as_path(data_dir) / dataset / "negatives.json"
    if not exists(path):
        return Negatives()
    content = load_json(path)

    def texts(field: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
            raise DataError(f"{path}: field {field}: found {str(value)[:60]!r}, expected a list of non-empty strings")
        return tuple(value)

    answers = content.get("answers")
    if not isinstance(answers, dict):
        raise DataError(f"{path}: field answers: found {str(answers)[:60]!r}, expected an object of answer kinds")
    return Negatives(
        captions=texts("captions", content.get("captions")),
        objects=texts("objects", content.get("objects")),
        answers={kind: texts(f"answers.{kind}", value) for kind, value in answers.items()},
    )


def negative_caption(item: Caption, draw: np.random.Generator, context: TaskContext) -> str:
    """A caption, normalised for a source, that differs from the normalised caption of `item`.

    In 40 % of the items with object words, one object is replaced in the caption itself; otherwise, or where that changes nothing,
    any caption of the dataset. Raises DataError when the dataset has no other caption.
    """
    true = pre_caption(item.text, SOURCE_WORDS)
    share = draw.random()
    if item.objects and share > SWAP_ABOVE:
        swapped = pre_caption(_swap_object(item, draw, context), SOURCE_WORDS)
        if swapped not in ("", true):
            return swapped
    captions = context.negatives.captions
    if captions:
        for _ in range(_TRIES):
            other = pre_caption(captions[draw.integers(len(captions))], SOURCE_WORDS)
            if other not in ("", true):
                return other
        # Nearly all captions are alike: take the next that differs, from a drawn place on.
        start = int(draw.integers(len(captions)))
        for text in captions[start:] + captions[:start]:
            other = pre_caption(text, SOURCE_WORDS)
            if other not in ("", true):
                return other
    raise DataError(f"{context.dataset}/negatives.json: field captions: found none but {true!r}, expected another caption to draw")


def _swap_object(item: Caption, draw: np.random.Generator, context: TaskContext) -> str:
    """The caption of `item` with all places of one of its objects, as a whole word, replaced by another object."""
    word = item.objects[draw.integers(len(item.objects))]
    other = _draw_other(context.negatives.objects, word, draw)
    if other is None:
        raise DataError(f"{context.dataset}/negatives.json: field objects: found none but {word!r}, expected another object to draw")
    return re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: other, item.text, flags=re.IGNORECASE)


def negative_answer(item: Question, draw: np.random.Generator, context: TaskContext) -> str:
    """An answer other than the item's: of the same kind with probability max(0, confidence - 0.1), else of kind "other".

    A count of the kind "how many" is instead moved by one, with equal odds up and down (0 only up), where the draw that decides this
    is above a half. Where one list has no other answer the other list is used; raises DataError when neither has one.
    """
    share = draw.random()
    answers = context.negatives.answers
    same_kind = answers.get(item.kind, ()) if item.kind != "other" else ()
    other = answers.get("other", ())
    prefer_kind = bool(same_kind) and item.confidence > share + 0.1
    if prefer_kind and item.kind == COUNT_KIND and _is_count(item.answer) and share > 0.5:
        count = int(item.answer)
        return str(count + 1 if count == 0 or draw.random() < 0.5 else count - 1)
    lists = (same_kind, other) if prefer_kind else (other, same_kind)
    for options in lists:
        found = _draw_other(options, item.answer, draw)
        if found is not None:
            return found
    raise DataError(
        f"{context.dataset}/negatives.json: field answers: found none but {item.answer!r} for kind {item.kind!r}, expected another"
    )


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _draw_other(options: Sequence[str], true: str, draw: np.random.Generator) -> str | None:
    """One of `options` that is not `true`, None where there is none. The official rule: the last one stands in for `true`."""
    if not options:
        return None
    found = options[int(draw.integers(len(options) - 1))] if len(options) > 1 else options[0]
    if found.lower() == true.lower():
        found = options[-1]
    return found if found.lower() != true.lower() else None
