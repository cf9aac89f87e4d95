"""Requests read from files, and predictions of many written to one that a killed command goes on with.

While OUT.jsonl is made its finished lines are in OUT.jsonl.part, and OUT.jsonl.part.json says with what they were made; both are gone when
OUT.jsonl is whole. Line k of OUT.jsonl belongs to line k of the input, whatever went wrong with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ofa_jax.config.decoding import DecodeSetting
from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.render import config_hash
from ofa_jax.eval.instruct import LIKELIEST, Answers, Instructor, Output, Prediction, Request
from ofa_jax.eval.rank import NamedScorer

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")

_BATCHES_A_WRITE = 4  # batches that are read, run and written at once: requests of one shape find each other


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of work, with what is wrong with it where something is."""

    where: str  # what an error begins with
    image: str | None  # as the line has it
    text: str | None
    path: Path | None = None
    error: str | None = None


def read_picture(path: str | Path) -> bytes:
    """The bytes of a picture's file. Raises DataError where there is no such file."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: found no file that can be read ({reason}), expected a picture") from error


def read_answers(path: str | Path) -> list[str]:
    """The answers of a text file, one a line; empty lines are left out. Raises DataError where none is left or it is no such file."""
    try:
        labels = [line.strip() for line in Path(path).read_text(encoding="utf-8").split("\n")]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: found no text file that can be read ({error}), expected answers, one a line") from error
    labels = [label for label in labels if label]
    if not labels:
        raise DataError(f"{path}: found no answer, expected one a line")
    return labels


def read_requests(path: str | Path) -> list[Line]:
    """The lines of a JSONL file: objects with `text` and, where there is a picture, `image`, its path relative to the file's folder.

    Other fields are not read. A malformed line becomes a `Line` with an error. Raises DataError where there is no file or no line.
    """
    path = Path(path)
    try:
        raw = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: found no file that can be read ({error.strerror}), expected JSON lines with image and text") from error
    if not raw[-1]:
        raw.pop()
    if not raw:
        raise DataError(f"{path}: found no line, expected JSON lines with image and text")
    return [_read_line(f"{path}: line {number}", line, path.parent) for number, line in enumerate(raw, 1)]


def _read_line(where: str, raw: bytes, folder: Path) -> Line:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return Line(where, None, None, error=f"{where}: found no JSON ({error}), expected an object with image and text")
    if not isinstance(found, dict):
        return Line(where, None, None, error=f"{where}: found {_kind(found)}, expected an object with image and text")
    image, text = found.get("image"), found.get("text")
    line = Line(where, image if isinstance(image, str) else None, text if isinstance(text, str) else None)
    if not isinstance(text, str):
        kind = _kind(text) if "text" in found else "none"
        return dataclasses.replace(line, error=f"{where}: text: found {kind}, expected a string")
    if image is None:
        return line
    if not isinstance(image, str) or not image:
        kind = "an empty string" if image == "" else _kind(image)
        return dataclasses.replace(line, error=f"{where}: image: found {kind}, expected a path, or no such field")
    return dataclasses.replace(line, path=folder / image)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def folder_requests(folder: str | Path, text: str) -> tuple[list[Line], int]:
    """One line for every picture directly in `folder`, by name, all with the same text, and the number of other files there.

    Raises DataError where there is no picture or no text.
    """
    folder = Path(folder)
    if not text.strip():
        raise DataError(f"text: found {text!r}, expected an instruction")
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise DataError(f"{folder}: found no folder that can be read ({error.strerror}), expected one of pictures") from error
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise DataError(f"{folder}: found no picture among {len(files)} files, expected one ending in {', '.join(PICTURE_SUFFIXES)}")
    return [Line(str(path), path.name, text, path) for path in pictures], len(files) - len(pictures)


def check_out(out: str | Path) -> None:
    """Raises ConfigError where `out` cannot become a new file."""
    out = Path(out)
    if out.exists():
        raise ConfigError(f"--out: found {out}, expected a name that is free")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: found {out}, expected a name in a folder that can be made ({error.strerror})") from error
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"--out: found {out}, expected a name in a folder that can be written to")


def write_predictions(
    instructor: Instructor,
    lines: Sequence[Line],
    out: str | Path,
    *,
    setting: DecodeSetting = LIKELIEST,
    output: Output = "text",
    answers: Answers | None = None,
    hypotheses: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> int:
    """Writes one JSON object a line, in order: image, text and `Prediction.to_json`, or error; returns the number of errors.

    Finished lines of a killed call are kept. Raises DataError where they are those of other requests, ConfigError where they were made
    with another checkpoint or other settings, and as `Instructor.check` does.
    """
    how: dict[str, Any] = {"setting": setting, "output": output, "answers": answers, "hypotheses": hypotheses}
    instructor.check(**how)
    out = Path(out)
    part, made_with = out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")
    errors = _finished(part, made_with, lines, _settings(instructor, **how))
    done, failed = len(errors), sum(errors)
    if done:
        progress(f"{part}: {done:,} of {len(lines):,} lines are done")
    size = _BATCHES_A_WRITE * instructor.batch_rows
    with open(part, "ab") as file:
        for start in range(done, len(lines), size):
            chunk = lines[start : start + size]
            for line, found in zip(chunk, _predict(instructor, chunk, start, how), strict=True):
                failed += isinstance(found, str)
                said = {"error": found} if isinstance(found, str) else found.to_json()
                # ASCII: a line may hold half a UTF-16 pair, which UTF-8 cannot.
                file.write(json.dumps({"image": line.image, "text": line.text, **said}).encode() + b"\n")
            file.flush()
            progress(f"{start + len(chunk):,} of {len(lines):,} lines")
    part.replace(out)
    made_with.unlink(missing_ok=True)
    return failed


def _predict(instructor: Instructor, lines: Sequence[Line], first: int, how: dict[str, Any]) -> list[Prediction | str]:
    """For every line its prediction or its error in a sentence."""
    found: list[Prediction | str] = [line.error or "" for line in lines]
    requests: dict[int, Request] = {}
    for place, line in enumerate(lines):
        if line.error is None:
            try:
                picture = None if line.path is None else read_picture(line.path)
                requests[place] = Request(line.text or "", picture, number=first + place)
            except DataError as error:
                found[place] = f"{line.where}: image: {error}"
    for place, result in zip(requests, instructor.predict_all(list(requests.values()), **how), strict=True):
        found[place] = f"{lines[place].where}: {result}" if isinstance(result, DataError) else result
    return found


def _settings(
    instructor: Instructor, *, setting: DecodeSetting, output: Output, answers: Answers | None, hypotheses: int
) -> dict[str, Any]:
    """What decides the predictions beside the requests."""
    closed = None if answers is None else hashlib.sha256("\n".join(answers.labels).encode()).hexdigest()[:12]
    ranked = {"scorer_digest": NamedScorer.load(setting.scorer).digest()[:12]} if setting.scorer else {}
    facts = {"checkpoint": instructor.source, "config": config_hash(instructor.config)[:12], "output": output, "hypotheses": hypotheses}
    chosen = {name: value for name, value in dataclasses.asdict(setting).items() if name not in ("name", "tasks")}
    return {**facts, **chosen, "answers": closed, **ranked}


def _finished(part: Path, made_with: Path, lines: Sequence[Line], settings: dict[str, Any]) -> list[bool]:
    """For every line that a killed call finished whether it is an error. A torn last line is cut off."""
    try:
        data = part.read_bytes()
    except FileNotFoundError:
        data = b""
    kept = data[: data.rfind(b"\n") + 1]
    if kept and made_with.exists():
        before = json.loads(made_with.read_text(encoding="utf-8"))
        for name in sorted({*before, *settings}):
            if before.get(name) != settings.get(name):
                raise ConfigError(
                    f"{part}: found lines made with {name}={before.get(name)}, expected {settings.get(name)}; remove it to start again"
                )
    made_with.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    errors = []
    for number, raw in enumerate(kept.split(b"\n")[:-1], 1):
        where, line = f"{part}: line {number}", lines[number - 1] if number <= len(lines) else None
        try:
            found = json.loads(raw)
            same = line is not None and (found["image"], found["text"]) == (line.image, line.text)
            errors.append("error" in found)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where}: found no prediction, expected one; remove the file to start again") from error
        if not same:
            raise DataError(f"{where}: found another request than the input's, expected the same; remove the file to start again")
    if len(kept) < len(data):
        with open(part, "r+b") as file:
            file.truncate(len(kept))
    return errors
