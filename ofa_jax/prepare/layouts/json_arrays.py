"""Big JSON files read value by value: a file of gigabytes takes as much memory as its largest value, whatever else it holds.

The files of COCO, VQA and their kin are one JSON object whose arrays hold the records (`items`); Visual Genome's are one array
(`elements`), GQA's one object whose members are the records (`members`). Each is one pass over the file. Python's own decoder takes every
value apart; only the outermost brackets are walked here. Every fault of the text is a `DataError` that names the file and the character.
"""

from __future__ import annotations

import io
import json
import re
import reprlib
from collections.abc import Iterator
from typing import Any, NoReturn

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import open_file

_CHUNK = 1 << 20  # characters read at a time
_LARGEST = 1 << 26  # characters of one value; COCO's largest objects (outlines of crowds) have about a hundred thousand
_SPACE = re.compile(r"[ \t\r\n]*")
_ENDS_VALUE = frozenset(",]} \t\r\n")


def items(path: str, *names: str) -> Iterator[tuple[str, Any]]:
    """Yields (name, value) for every value of the arrays called `names` in the JSON object of a file, in the file's order; other members
    are passed over.

    Raises `DataError` when the text is no whole JSON object, or when one of the names is missing, is no array or comes twice (the last of
    these after all values); OSError when the file cannot be read.
    """
    seen: set[str] = set()
    with _open(path) as file:
        text = _Text(path, file)
        for name in text.object_names():
            if name not in names:
                text.skip()
                continue
            if name in seen:
                raise DataError(f"{path}: field {name}: found it twice, expected it once")
            seen.add(name)
            if text.peek() != "[":
                raise DataError(f"{path}: field {name}: found {reprlib.repr(text.value())}, expected an array")
            for value in text.array_values():
                yield name, value
    for name in names:
        if name not in seen:
            raise DataError(f"{path}: field {name}: found no such field, expected an array")


def elements(path: str) -> Iterator[Any]:
    """Yields the values of a file that is one JSON array. Raises `DataError` when it is not, OSError when it cannot be read."""
    with _open(path) as file:
        text = _Text(path, file)
        if text.peek() != "[":
            text.fail("an array")
        yield from text.array_values()
        text.expect_end()


def members(path: str) -> Iterator[tuple[str, Any]]:
    """Yields (name, value) of a file that is one JSON object. Raises `DataError` when it is not, OSError when it cannot be read."""
    with _open(path) as file:
        text = _Text(path, file)
        for name in text.object_names():
            yield name, text.value()


def field(raw: Any, name: str, kind: type, *, path: str, of: str) -> Any:
    """Returns `raw[name]` of a value in a file. kind: its type; float takes whole numbers too, and no kind of number takes true or false.

    of: what the value is ("images"). Raises `DataError` that names file, field, found and expected.
    """
    if not isinstance(raw, dict):
        raise DataError(f"{path}: {of}: found {reprlib.repr(raw)}, expected an object with {name}")
    value = raw.get(name, _MISSING)
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    found = "no such field" if value is _MISSING else reprlib.repr(value)
    raise DataError(f"{path}: {of}: field {name}: found {found} in {reprlib.repr(raw)}, expected {_KINDS[kind]}")


_MISSING = object()
_KINDS = {int: "a whole number", float: "a number", str: "a text", list: "an array", dict: "an object"}


def _open(path: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="")


class _Text:
    """The text of a file with a place in it. `buffer` holds what was read and is not done with."""

    def __init__(self, path: str, file: io.TextIOWrapper):
        self.path, self.file = path, file
        self.buffer, self.at, self.before, self.ended = "", 0, 0, False  # before: characters of the file that lie before the buffer
        self.decoder = json.JSONDecoder()

    def fail(self, expected: str) -> NoReturn:
        if self.at >= len(self.buffer):
            found = f"the end of the file after {self.before + len(self.buffer)} characters"
        else:
            found = f"{self.buffer[self.at : self.at + 20]!r} at character {self.before + self.at}"
        raise DataError(f"{self.path}: found {found}, expected {expected}")

    def refill(self) -> None:
        """Reads on, as much again as there is, so that a value of many chunks is not tried once for each of them."""
        self.before += self.at
        rest = self.buffer[self.at :]
        self.at = 0
        try:
            more = self.file.read(max(_CHUNK, len(rest)))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}: found bytes that are no UTF-8 ({error.reason}) after character {self.before}, expected text"
            ) from None
        self.ended = not more
        self.buffer = rest + more

    def peek(self) -> str:
        """Returns the next character that is no space, and stands on it; an empty string at the end."""
        while True:
            self.at = _SPACE.match(self.buffer, self.at).end()  # type: ignore[union-attr]  # it matches nothing too
            if self.at < len(self.buffer) or self.ended:
                return self.buffer[self.at : self.at + 1]
            self.refill()

    def take(self, expected: str) -> None:
        if self.peek() != expected:
            self.fail(f"{expected!r}")
        self.at += 1

    def expect_end(self) -> None:
        if self.peek():
            self.fail("the end of the file")

    def value(self) -> Any:
        """Returns the value that begins here."""
        if not self.peek():
            self.fail("a JSON value")
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
                # A number may go on behind the buffer, and is whole only once something follows it.
                if self.ended or (end < len(self.buffer) and self.buffer[end] in _ENDS_VALUE):
                    self.at = end
                    return value
                place, problem = end, "more characters"
            except RecursionError:
                self.fail("values that are less deep")
            except json.JSONDecodeError as error:
                place, problem = error.pos, error.msg
            except ValueError as error:  # a whole number of thousands of digits
                place, problem = self.at, str(error)
            if self.ended:
                raise DataError(
                    f"{self.path}: found text that does not parse or ends too early ({problem}) at character {self.before + place}, "
                    f"expected a whole JSON value"
                )
            if len(self.buffer) - self.at > _LARGEST:
                raise DataError(
                    f"{self.path}: found a value of more than {_LARGEST} characters or text that does not parse ({problem}) at character "
                    f"{self.before + place}, expected smaller values"
                )
            self.refill()

    def skip(self) -> None:
        """Passes over the value that begins here, an array value by value."""
        if self.peek() == "[":
            for _ in self.array_values():
                pass
        else:
            self.value()

    def array_values(self) -> Iterator[Any]:
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self.at += 1
                return
            if self.peek() != ",":
                self.fail("',' or ']'")
            self.at += 1

    def object_names(self) -> Iterator[str]:
        """Yields the name of each member of the object that is the whole file; the caller reads its value before the next."""
        if self.peek() != "{":
            self.fail("a JSON object")
        self.at += 1
        if self.peek() == "}":
            self.at += 1
            self.expect_end()
            return
        while True:
            if self.peek() != '"':
                self.fail("the name of a field")
            name = self.name()
            self.take(":")
            yield name
            if self.peek() == "}":
                self.at += 1
                self.expect_end()
                return
            if self.peek() != ",":
                self.fail("',' or '}'")
            self.at += 1

    def name(self) -> str:
        while True:
            try:
                name, self.at = self.decoder.raw_decode(self.buffer, self.at)
                return name
            except json.JSONDecodeError as error:
                if self.ended or len(self.buffer) - self.at > _LARGEST:
                    raise DataError(f"{self.path}: found {error.msg} at character {self.before + error.pos}, expected a name") from None
                self.refill()
