from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.prepare.layouts import json_arrays
from ofa_jax.prepare.layouts.json_arrays import elements, field, items, members

CONTENT: dict[str, Any] = {
    "info": {"n": [1, {"a": 2}], "t": 'a ] } " \\ é'},
    "images": [{"id": 1}, {"id": 2, "name": "éа漢 \u2028"}],
    "empty": [],
    "annotations": [1, -2.5e-3, "x,]", [], {}, None, True, 1234567890123],
    "n": 12,
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_values_are_those_of_the_standard_decoder_whatever_the_chunk(
    chunk: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_arrays, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT, indent=indent, ensure_ascii=indent is None) + "\n", encoding="utf-8")
    assert list(members(str(path))) == list(CONTENT.items())
    wanted = [(name, value) for name in ("images", "empty", "annotations") for value in CONTENT[name]]
    assert list(items(str(path), "annotations", "images", "empty")) == wanted
    assert list(items(str(path), "annotations")) == [("annotations", value) for value in CONTENT["annotations"]]
    for values in (CONTENT["annotations"], [12], [1.5], []):
        path.write_text(json.dumps(values, indent=indent), encoding="utf-8")
        assert list(elements(str(path))) == values


def test_memory_is_that_of_one_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_arrays, "_CHUNK", 1 << 14)
    path = tmp_path / "a.json"
    skipped = [{"outline": list(range(100))}] * 4000
    path.write_text(json.dumps({"skipped": skipped, "kept": [1, 2]}))
    assert path.stat().st_size > 1_500_000
    tracemalloc.start()
    assert [value for _, value in items(str(path), "kept")] == [1, 2]
    assert tracemalloc.get_traced_memory()[1] < 400_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found the end of the file after 0 characters, expected a JSON object"),
        ("[]", r"found '\[\]' at character 0, expected a JSON object"),
        (
            '{"a": [1, 2',
            "found the end of the file after 11 characters, expected ',' or '\\]'",
        ),
        ('{"a": [{"b": "c', r"ends too early \(Unterminated string.* at character 13, expected a whole JSON value"),
        ('{"a": [1, 2]', "found the end of the file after 12 characters, expected ',' or '}'"),
        ('{"a": [1 2]}', r"found '2\]}' at character 9, expected ',' or '\]'"),
        ('{"a": [1],}', "found '}' at character 10, expected the name of a field"),
        ('{"a" [1]}', r"found '\[1\]}' at character 5, expected ':'"),
        ('{"a": [1]} x', "found 'x' at character 11, expected the end of the file"),
        ('{"b": [1]}', "field a: found no such field, expected an array"),
        ('{"a": {"b": 1}}', "field a: found {'b': 1}, expected an array"),
        ('{"a": [1], "a": [2]}', "field a: found it twice, expected it once"),
        ('{"a": [' + "[" * 200_000 + "]}", "expected values that are less deep"),
        ('{"a": [' + "1" * 5000 + "]}", "does not parse or ends too early .* expected a whole JSON value"),
        ('{"a": [tru]}', r"\(Expecting value\) at character 7"),
    ],
)
def test_a_damaged_file_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        list(items(str(path), "a"))
    assert str(error.value).startswith(str(path))


def test_damaged_arrays_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    with pytest.raises(DataError, match="found '{\"a\": 1}' at character 0, expected an array"):
        list(elements(str(path)))
    path.write_text("[1, 2] 3")
    with pytest.raises(DataError, match="found '3' at character 7, expected the end of the file"):
        list(elements(str(path)))
    path.write_bytes(b'["\xff"]')
    with pytest.raises(DataError, match="found bytes that are no UTF-8"):
        list(elements(str(path)))
    path.write_bytes(b"\xef\xbb\xbf[1]")  # a byte order mark
    assert list(elements(str(path))) == [1]


def test_a_value_larger_than_any_real_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_arrays, "_CHUNK", 10)
    monkeypatch.setattr(json_arrays, "_LARGEST", 100)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(["x" * 1000]))
    with pytest.raises(DataError, match="found a value of more than 100 characters .* expected smaller values"):
        list(elements(str(path)))


@pytest.mark.parametrize(
    ("raw", "kind", "message"),
    [
        ({}, int, "f.json: images: field id: found no such field in {}, expected a whole number"),
        ({"id": "3"}, int, "found '3' in {'id': '3'}, expected a whole number"),
        ({"id": True}, float, "found True in .* expected a number"),
        ({"id": 1.5}, int, "found 1.5 in .* expected a whole number"),
        ({"id": None}, str, "found None in .* expected a text"),
        ([1], str, r"f.json: images: found \[1\], expected an object with id"),
    ],
)
def test_a_field_is_checked(raw: Any, kind: type, message: str) -> None:
    assert field({"id": 3}, "id", float, path="f.json", of="images") == 3
    with pytest.raises(DataError, match=message):
        field(raw, "id", kind, path="f.json", of="images")
