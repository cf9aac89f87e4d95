from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Box, Caption, DetectedObject, ImageRecord, Question, Region, TextRecord
from ofa_jax.prepare.layouts.table import ColumnTable, TextTable, parse_boxes
from tests.prepare.layouts.fixtures.reading import errors, found, ids, records, sentences
from tests.prepare.layouts.fixtures.streamed import encoded, jpeg, strange_pictures, write_compressed, write_lines, write_parquet

ENDINGS = ("csv", "csv.gz", "csv.zst", "tsv", "tsv.zst", "jsonl", "jsonl.zst", "ndjson.gz", "parquet")


def write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    """Writes a table in the format of its ending."""
    rows = list(zip(*columns.values(), strict=True))
    if ".parquet" in path.name:
        write_parquet(path, columns, row_group_size=2)
    elif "json" in path.name:
        write_lines(path, [dict(zip(columns, row, strict=True)) for row in rows])
    else:
        out = io.StringIO()
        writer = csv.writer(out, delimiter="," if ".csv" in path.name else "\t")
        writer.writerows([list(columns), *rows])
        write_compressed(path, out.getvalue().encode())


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_records(tmp_path: Path, ending: str) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    columns: dict[str, list[Any]] = {
        "name": [f"n{number}" for number in range(5)],
        "file": [f"pictures/{number}.jpg" for number in range(5)],
        "said": [f"it's, \u00e9 {number}" for number in range(5)],
        "asked": ["what?"] * 5,
        "answered": ["a cat"] * 5,
        "part": ["the cat"] * 5,
        "place": ["1,2,3,4.5"] * 5,
        "not read": [0] * 5,
    }
    write_table(tmp_path / f"data.{ending}", columns)
    layout = ColumnTable(
        str(tmp_path), "own", id="name", image="file", caption="said", question="asked", answer="answered",
        region_text="part", region_box="place", label="part", label_box="place", box_format="xywh",
    )  # fmt: skip
    box = Box(1, 2, 4, 6.5)
    assert records(layout) == {
        f"n{number}": ImageRecord(
            f"n{number}", "own", jpeg(number), 40, 30, (Caption(f"it's, \u00e9 {number}"),), (Region("the cat", box),),
            (Question("what?", "a cat"),), (DetectedObject("the cat", box),),
        )
        for number in range(5)
    }  # fmt: skip
    assert [item.name for item in layout.inputs(tmp_path)] == ["data"]


def test_lists_in_one_cell(tmp_path: Path) -> None:
    data: dict[str, list[Any]] = {
        "image": [{"bytes": jpeg(1), "path": "x.jpg"}, {"bytes": jpeg(2), "path": None}, {"bytes": jpeg(3), "path": None}],
        "caption": [["one", "two"], [], None],
        "question": [["a?", "b?"], ["c?"], None],
        "answer": [["1", "2"], ["3"], None],
        "label": [["cat", "dog"], ["cat"], None],
        "box": [[[0.0, 0.0, 10.0, 10.0], [1.0, 2.0, 3.0, 4.0]], [[5.0, 5.0, 9.0, 9.0]], None],
    }
    write_parquet(tmp_path / "a.parquet", data)
    layout = ColumnTable(
        str(tmp_path), "own", image_form="bytes", caption="caption", question="question", answer="answer", label="label", label_box="box"
    )
    first, second, third = found(layout)
    assert first.captions == (Caption("one"), Caption("two")) and first.questions == (Question("a?", "1"), Question("b?", "2"))
    assert first.objects == (DetectedObject("cat", Box(0, 0, 10, 10)), DetectedObject("dog", Box(1, 2, 3, 4)))
    assert (second.record_id, second.captions, len(second.objects)) == ("a/2", (), 1)
    assert str(third) == (
        "own record a/3: field (record): found no annotation, expected one of image, caption, question, answer, label, box"
    )
    listed = {"image": [encoded(jpeg(4), url_safe=True)], "words": ['["cat", "dog"]'], "boxes": ["[[0,0,10,10],[1,2,3,4]]"]}
    write_table(tmp_path / "b.csv", listed)
    layout = ColumnTable(str(tmp_path), "own", pattern="*.csv", image_form="base64", region_text="words", region_box="boxes")
    (record,) = records(layout).values()
    assert record.regions == (Region("cat", Box(0, 0, 10, 10)), Region("dog", Box(1, 2, 3, 4))) and record.image == jpeg(4)


def test_without_columns_of_annotations_pictures_alone_are_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"jpg": [jpeg(1), jpeg(2)]})
    layout = ColumnTable(str(tmp_path), "own", image="jpg", image_form="bytes")
    assert [one.captions for one in records(layout).values()] == [(), ()]


@pytest.mark.parametrize("ending", ENDINGS)
def test_texts(tmp_path: Path, ending: str) -> None:
    write_table(tmp_path / f"a.{ending}", {"body": ["one text", "another"]})
    layout = TextTable(str(tmp_path), "texts", text_column="body")
    assert records(layout) == {f"a/{n}": TextRecord(f"a/{n}", "texts", text) for n, text in ((1, "one text"), (2, "another"))}
    assert TextTable.KIND == "text" and ColumnTable.KIND == "image"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_missing_column_stops_the_build_with_the_columns_that_there_are(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    write_table(path, {"id": ["1"], "text": ["it"]})
    with pytest.raises(DataError, match="column body: found columns id, text, expected id, body") as raised:
        records(TextTable(str(tmp_path), "texts", id="id", text_column="body"))
    assert str(path) in str(raised.value)


def test_names_of_columns_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"")
    for fields, sentence in (
        ({"question": "q"}, "own: answer: found no column beside question=q, expected both or none"),
        ({"label_box": "b"}, "own: label: found no column beside label_box=b, expected both or none"),
        ({"image": ""}, "own: image: found no column, expected the one of the pictures"),
        ({}, r"own: found no \*\*/\*.csv.gz or "),
        ({"pattern": "*.xlsx"}, "a.xlsx: found the ending of no table, expected .csv.gz, "),
    ):
        with pytest.raises(DataError, match=sentence):
            ColumnTable(str(tmp_path), "own", **fields).inputs(tmp_path)


def test_a_picture_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg())
    paths = ["0.jpg", "no.jpg", "../0.jpg", str(tmp_path / "0.jpg"), "", "."]
    write_lines(tmp_path / "a.jsonl", [{"image": path} for path in [*paths, None, 7]])
    layout = ColumnTable(str(tmp_path), "own")
    assert ids(layout) == ["a/1"]
    said = sentences(layout)
    assert said[0] == f"own record a/2: field image: found no file 'no.jpg', expected the picture {tmp_path}/no.jpg"
    assert said[1] == "own record a/3: field image: found '../0.jpg', expected a path below the source"
    assert said[3] == "own record a/5: field image: found str '', expected a path below the source" and len(said) == 7
    write_lines(tmp_path / "b.jsonl", [{"image": text} for text in ("caf\u00e9", "AAA*", "A", encoded(jpeg(), padded=False))])
    layout = ColumnTable(str(tmp_path), "own", pattern="b.jsonl", image_form="base64")
    assert ids(layout) == ["b/4"] and all(sentence.endswith("expected base64") for sentence in sentences(layout))
    strange = strange_pictures()
    write_parquet(tmp_path / "c.parquet", {"id": list(strange), "image": [content for content, _ in strange.values()]})
    layout = ColumnTable(str(tmp_path), "own", pattern="c.parquet", id="id", image_form="bytes")
    assert ids(layout) == [name for name, (_, usable) in strange.items() if usable]
    assert [error.record for error in errors(layout)] == [name for name, (_, usable) in strange.items() if not usable]


def test_cells_that_cannot_be_used_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg())
    rows: list[dict[str, Any]] = [
        {"label": "cat", "box": "1,2,3"},
        {"label": "cat", "box": [1, 2, "x", 4]},
        {"label": "cat", "box": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        {"label": "cat", "box": [5, 5, 5, 9]},
        {"label": "cat", "box": {"x": 1}},
        {"label": "cat", "box": None},
        {"label": ["cat", "dog"], "box": [[1, 2, 3, 4], [5, 5, 5, 9]]},
        {"label": True, "box": [1, 2, 3, 4]},
        {"label": "half \ud83d", "box": [1, 2, 3, 4]},
        {"label": "x " * 10_000, "box": [1, 2, 3, 4]},
        {"label": "cat", "box": [1, 2, 10**400, 4]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"image": "0.jpg", **row}) + "\n" for row in rows) + '{"image": "0')
    layout = ColumnTable(str(tmp_path), "own", label="label", label_box="box")
    assert ids(layout) == ["a/7", "a/10"]
    said = sentences(layout)
    expected = "expected four numbers, or a list of such"
    assert said[0] == f"own record a/1: field box: found ['1', '2', '3'], {expected}"
    assert said[2] == "own record a/3: field label: found 1 for 2 of box, expected as many"
    assert said[3] == "own record a/4: field objects[0].box: found 5,5,5,9, expected at least half of an area within 40x30"
    assert said[6] == "own record a/6: field box: found nothing for label 'cat', expected a box"
    assert said[8] == "own record a/8: field label: found bool True, expected a text"
    assert said[9] == r"own record a/9: field label: found 'half \ud83d' (no UTF-8 at 5), expected text in UTF-8"
    assert [error.record for error in errors(layout)] == [f"a/{n}" for n in (1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 11, 12)]


def test_bytes_that_are_no_utf_8_cost_their_row_alone(tmp_path: Path) -> None:
    good, bad = "caf\u00e9".encode(), "caf\u00e9".encode("latin-1")
    (tmp_path / "a.csv").write_bytes(b"id,text,more\n1," + good + b",x\n2," + bad + b",x\n3,ok," + bad + b"\n")
    (tmp_path / "b.tsv").write_bytes(b"\xef\xbb\xbfid\ttext\r\n1\t" + good + b"\r\n2\t" + bad + b"\r\n")
    (tmp_path / "c.jsonl").write_bytes(b'{"id": 1, "text": "' + good + b'"}\n{"id": 2, "text": "' + bad + b'"}\n')
    texts = pa.array([good, bad, b"ok"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": ["1", "2", "3"], "text": texts}), tmp_path / "d.parquet")
    layout = TextTable(str(tmp_path), "texts")
    assert ids(layout) == ["a/1", "a/3", "b/1", "c/1", "d/1", "d/3"]
    said = sentences(layout)
    assert [one.split(":")[0] for one in said] == [f"texts record {name}/2" for name in "abcd"]
    assert said[0] == r"texts record a/2: field text: found 'caf\udce9' (no UTF-8 at 3), expected text in UTF-8"
    assert said[3].startswith("texts record d/2: field text: found bytes that are no UTF-8 (")


def test_quotes_in_csv_and_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"two\nlines, ""quoted"""\n2,"x"y\n3,fine\n4,short,long\n\n5,"never closed\n6,lost\n')
    layout = TextTable(str(tmp_path), "texts", pattern="*.csv")
    texts = {one.record_id: one.text for one in found(layout) if isinstance(one, TextRecord)}
    assert texts == {"a/1": 'two\nlines, "quoted"', "a/3": "fine"}
    assert [(error.record, error.field) for error in errors(layout)] == [("a/2", "(row)"), ("a/4", "(row)"), ("a/5", "(row)")]
    assert "in lines 8 to 9, expected cells as RFC 4180 writes them" in sentences(layout)[2]
    (tmp_path / "b.tsv").write_text('1\t"Hello" he said\n2\t"open\n')
    layout = TextTable(str(tmp_path), "texts", pattern="*.tsv", header=("id", "text"), id="id")
    assert [one.text for one in records(layout).values()] == ['"Hello" he said', '"open']
    (tmp_path / "b.tsv").write_text('1\t"a\tb"\n')
    layout = TextTable(str(tmp_path), "texts", pattern="*.tsv", header=("id", "text"), quoted="always")
    assert [one.text for one in records(layout).values()] == ["a\tb"]
    (tmp_path / "c.csv").write_text(f"id,text\n1,{'x' * 300_000}\n")
    assert len(records(TextTable(str(tmp_path), "texts", pattern="c.csv"))["c/1"].text) == 300_000


def test_empty_and_cut_files_are_named(tmp_path: Path) -> None:
    for name in ("a.csv", "b.jsonl", "c.parquet", "d.tsv.gz", "e.jsonl.zst"):
        (tmp_path / name).write_bytes(b"")
    write_table(tmp_path / "f.csv", {"id": [], "text": []})
    write_table(tmp_path / "g.parquet", {"id": ["1"] * 500, "text": ["it"] * 500})
    data = (tmp_path / "g.parquet").read_bytes()
    (tmp_path / "g.parquet").write_bytes(data[: len(data) // 2])
    write_table(tmp_path / "h.jsonl.zst", {"id": list(range(9000)), "text": [f"{n * n} {n}" for n in range(9000)]})
    data = (tmp_path / "h.jsonl.zst").read_bytes()
    (tmp_path / "h.jsonl.zst").write_bytes(data[:-10])
    layout = TextTable(str(tmp_path), "texts")
    assert [(error.record, error.field) for error in errors(layout)] == [(name, "(file)") for name in "abcdefgh"]
    assert all(f"expected {tmp_path}/{name}." in one for name, one in zip("abcdefgh", sentences(layout), strict=True))
    assert len(ids(layout)) > 1000


def test_a_parquet_file_that_is_damaged_gives_the_rows_before(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"text": [f"{n * n * n} some words" for n in range(1000)]}, row_group_size=100)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = b"\xff" * 400
    (tmp_path / "a.parquet").write_bytes(data)
    layout = TextTable(str(tmp_path), "texts")
    (error,) = errors(layout)
    count = len(ids(layout))
    assert 100 <= count < 900 and error.found.startswith(f"a parquet file that cannot be read after row {count} (")


def test_ids_that_are_missing_are_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"id": 12, "text": "a"}, {"id": None, "text": "b"}, {"text": "c"}, {"id": "", "text": "d"}])
    layout = TextTable(str(tmp_path), "texts", id="id")
    assert ids(layout) == ["12"]
    assert sentences(layout) == [
        "texts record a/2: field id: found nothing, expected an id",
        "texts record a/3: field id: found fields text, expected them, or null where there is nothing",
        "texts record a/4: field id: found nothing, expected an id",
    ]


def test_boxes_of_a_cell() -> None:
    assert parse_boxes("1, 2,3 ,4.5") == ([[1, 2, 3, 4.5]], False)
    assert parse_boxes("[1, 2, 3, 4]") == ([[1, 2, 3, 4]], False)
    assert parse_boxes([[1, 2, 3, 4]]) == ([[1, 2, 3, 4]], True)
    assert parse_boxes([]) == ([], True)
    for value in ("[1, 2", 7, [[1, 2, 3, 4], None], "a,b,c,d"):
        with pytest.raises(ValueError):
            parse_boxes(value)
