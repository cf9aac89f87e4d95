from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import TextRecord
from ofa_jax.prepare.layouts.text_lines import TextLines, cut_text
from tests.prepare.layouts.fixtures.reading import errors, ids, records, sentences
from tests.prepare.layouts.fixtures.streamed import write_compressed, write_lines, write_pile


def test_documents_of_all_files_become_records(tmp_path: Path) -> None:
    written = write_pile(tmp_path)
    write_lines(tmp_path / "plain.jsonl", [{"text": "plain \u2028 text"}])
    write_lines(tmp_path / "packed.jsonl.gz", [{"text": "packed"}])
    written |= {"plain/1/0": "plain \u2028 text", "packed/1/0": "packed"}
    assert records(TextLines(str(tmp_path), "pile")) == {name: TextRecord(name, "pile", text) for name, text in written.items()}
    assert TextLines.KIND == "text"


def test_parts_of_the_corpus_are_chosen_by_name(tmp_path: Path) -> None:
    write_pile(tmp_path, files=1, documents=4)
    assert ids(TextLines(str(tmp_path), "pile", include=("Github",))) == ["00/2/0", "00/4/0"]
    assert ids(TextLines(str(tmp_path), "pile", exclude=("Github",))) == ["00/1/0", "00/3/0"]
    write_lines(tmp_path / "00.jsonl.zst", [{"text": "of no part"}])
    (said,) = sentences(TextLines(str(tmp_path), "pile", exclude=("Github",)))
    assert said.startswith("pile record 00/1: field meta.pile_set_name: found None, expected the name of a part")


def test_long_documents_are_cut_between_words_and_nothing_is_lost(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    text = "".join("w" * int(draw.integers(1, 9)) + (" ", "\n\n", "\t")[int(draw.integers(3))] for _ in range(500)) + "x" * 205 + " y"
    pieces = list(cut_text(text, 100))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 100
    assert [piece[-1].isspace() for piece in pieces].count(False) <= 3  # in the long word, and at the end
    write_lines(tmp_path / "a.jsonl", [{"text": text}, {"text": "short"}])
    found = records(TextLines(str(tmp_path), "own", max_chars_per_record=100))
    assert list(found) == [f"a/1/{n}" for n in range(len(pieces))] + ["a/2/0"]
    assert "".join(one.text for one in found.values()) == text + "short"


def test_white_space_makes_no_record(tmp_path: Path) -> None:
    assert "".join(cut_text("ab" + " " * 500 + "cd", 100)).split() == ["ab", "cd"]
    assert not any(piece.isspace() for piece in cut_text("ab" + " " * 500 + "cd", 100))


def test_lines_that_cannot_be_used_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "caf\xe9"}',
        b'{"text": "cut',
        b'["no object"]',
        b'{"body": "another field"}',
        b'{"text": " "}',
        b'{"text": "half \\ud83d"}',
        b'{"text": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
        b"",
        json.dumps({"text": "word " * 10_000}).encode(),
    ]
    write_compressed(tmp_path / "a.jsonl.zst", b"\n".join(lines))
    layout = TextLines(str(tmp_path), "own", max_chars_per_record=100_000)
    assert ids(layout) == ["a/1/0", "a/11/0"]
    assert [(error.record, error.field, error.reason) for error in errors(layout)] == [
        ("a/2", "(line)", "schema"),
        ("a/3", "(line)", "schema"),
        ("a/4", "(line)", "schema"),
        ("a/5", "text", "schema"),
        ("a/6", "text", "empty_text"),
        ("a/7", "text", "schema"),
        ("a/8", "(line)", "schema"),
        ("a/9", "(line)", "schema"),
        ("a/10", "(line)", "schema"),
    ]
    said = sentences(layout)
    assert said[0] == (
        "own record a/2: field (line): found bytes that are no UTF-8 (invalid continuation byte at 13), expected JSON in UTF-8"
    )
    assert said[3] == "own record a/5: field text: found None in an object of body, expected a text"


@pytest.mark.parametrize("ending", ["zst", "gz"])
def test_a_compressed_file_that_is_cut_gives_its_whole_lines_and_one_error(tmp_path: Path, ending: str) -> None:
    draw = np.random.default_rng(0)
    texts = [" ".join(map(str, draw.integers(0, 1 << 60, 50))) for _ in range(400)]
    path = tmp_path / f"a.jsonl.{ending}"
    write_lines(path, [{"text": text} for text in texts])
    data = path.read_bytes()
    layout = TextLines(str(tmp_path), "own")
    for share in (0.0001, 0.3, 0.6, 0.999):
        path.write_bytes(data[: int(len(data) * share)])
        (error,) = errors(layout)
        count = len(ids(layout))
        assert ids(layout) == [f"a/{n + 1}/0" for n in range(count)]
        assert (count > 0) == (share > 0.5) or share == 0.3
        assert error.found == f"a compressed file that is cut at byte {int(len(data) * share)}, {count} whole lines before it"
        assert error.expected == f"{path} whole"
    path.write_bytes(data[:1000] + b"\0\xff" * 500 + data[2000:])
    error = errors(layout)[-1]  # lines that were spoilt may come first: a frame's checksum stands at its end
    assert error.field == "(file)" and "compressed bytes that do not decode before byte" in error.found


def test_several_frames_in_one_file_are_one_text(tmp_path: Path) -> None:
    frames = [zstandard.ZstdCompressor().compress(part) for part in (b'{"text": "on', b'e"}\n{"text": "two"}', b"\n")]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert [one.text for one in records(TextLines(str(tmp_path), "own")).values()] == ["one", "two"]


def test_missing_and_empty_files_and_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"own: found no \*\*/\*.jsonl.zst or .* in .*, expected them as https://pile.eleuther.ai"):
        TextLines(str(tmp_path), "own").inputs(tmp_path)
    with pytest.raises(DataError, match="own: max_chars_per_record: found 5, expected 40 or more"):
        TextLines(str(tmp_path), "own", max_chars_per_record=5).inputs(tmp_path)
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        (tmp_path / name).write_bytes(b"")
    assert [error.found for error in errors(TextLines(str(tmp_path), "own"))] == ["a file without lines"] * 3
