"""The folder `negative_sample` of OFA's own pretraining files: what negatives of image-text matching are drawn from.

Page: https://github.com/OFA-Sys/OFA/blob/main/datasets.md. `all_captions.txt` has a caption a line, `object.txt` an object word a line,
`type2ans.json` lists of answers by kind of question.
"""

from __future__ import annotations

import json
from typing import Any

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import open_file

OTHER = "other"  # kind of all answers that no other kind has; negatives are drawn from it when nothing else fits


def read_negatives(folder: str) -> dict[str, Any]:
    """Returns what a data set's `negatives.json` holds: {"captions": [...], "objects": [...], "answers": {kind: [...]}}. Blank lines are
    left out. Raises `DataError` when a file is missing, holds nothing, or is not as described."""
    root = folder.rstrip("/")
    return {
        "captions": _read_lines(f"{root}/all_captions.txt"),
        "objects": _read_lines(f"{root}/object.txt"),
        "answers": read_answers(f"{root}/type2ans.json"),
    }


def read_answer_kinds(path: str) -> dict[str, str]:
    """Returns the kind of each answer of a `type2ans.json`. As in the official code, answers of kind "other" have none, and of several
    kinds the last one counts. Raises `DataError` as `read_answers` does."""
    return {answer: kind for kind, answers in read_answers(path).items() if kind != OTHER for answer in answers}


def read_answers(path: str) -> dict[str, list[str]]:
    """Returns the answers by kind of a `type2ans.json`. Raises `DataError`."""
    try:
        raw = json.loads(_read(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: found bytes that are no UTF-8 ({error.reason} at {error.start}), expected JSON") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: found what does not parse ({error}), expected JSON") from error
    if not isinstance(raw, dict) or OTHER not in raw:
        found = f"the fields {', '.join(raw)[:80]}" if isinstance(raw, dict) else type(raw).__name__
        raise DataError(f"{path}: found {found}, expected an object of lists with the field {OTHER}")
    for kind, answers in raw.items():
        if not isinstance(answers, list):
            raise DataError(f"{path}: field {kind}: found {answers!r:.60}, expected a list of texts")
        for place, answer in enumerate(answers):
            if not isinstance(answer, str) or not answer.strip():
                raise DataError(f"{path}: field {kind}[{place}]: found {answer!r:.60}, expected a text")
    return raw


def _read_lines(path: str) -> list[str]:
    lines = []
    for number, raw in enumerate(_read(path).split(b"\n"), 1):
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: line {number}: found bytes that are no UTF-8 ({error.reason} at {error.start}), expected text"
            ) from error
        if line:
            lines.append(line)
    if not lines:
        raise DataError(f"{path}: found no line with a word, expected at least one")
    return lines


def _read(path: str) -> bytes:
    try:
        with open_file(path) as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: found no such file, expected it beside all_captions.txt, object.txt and type2ans.json") from None
