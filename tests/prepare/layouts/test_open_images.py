from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Box, DetectedObject
from ofa_jax.prepare.layouts.open_images import OpenImages
from tests.prepare.layouts.annotated_fixtures import OPEN_IMAGES_COLUMNS, read_all, write_open_images

FIRST, SECOND = "000026e7ee790996", "0000c64e1253d68f"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "oi").mkdir()
    write_open_images(tmp_path / "oi")
    return tmp_path / "oi"


def open_images(source: Path, **options: Any) -> OpenImages:
    return OpenImages(str(source), "oi_test", **options)


def line(image: str, label: str, x0: object, x1: object, y0: object, y1: object, group: int = 0) -> str:
    return f"{image},xclick,{label},1,{x0},{x1},{y0},{y1},0,0,{group},0,0"


def test_shares_become_pixels_and_groups_are_left_out(source: Path, tmp_path: Path) -> None:
    records, errors, lines = read_all(open_images(source), tmp_path / "g")
    assert errors == [] and lines == ["oi_test: 2 pictures; 1 boxes left out that are groups (IsGroupOf)"]
    assert [(record.record_id, record.objects) for record in records] == [
        (FIRST, (DetectedObject("Tree", Box(16, 0, 32, 24)), DetectedObject("Car, small", Box(32, 24, 48, 48)))),
        (SECOND, (DetectedObject("Car, small", Box(0, 0, 64, 48)),)),
    ]
    assert records[0].image == (source / "train" / f"{FIRST}.jpg").read_bytes()
    assert open_images(source).picture_key(FIRST) == f"open_images/{FIRST}"


def test_groups_may_be_kept(source: Path, tmp_path: Path) -> None:
    records, _, lines = read_all(open_images(source, groups=True), tmp_path / "g")
    assert [len(record.objects) for record in records] == [3, 1] and "0 boxes left out" in lines[0]


def test_names_of_later_versions(source: Path, tmp_path: Path) -> None:
    (source / "train-annotations-bbox.csv").rename(source / "oidv6-train-annotations-bbox.csv")
    labels = source / "class-descriptions-boxable.csv"
    (source / "oidv7-class-descriptions-boxable.csv").write_text("LabelName,DisplayName\n" + labels.read_text())
    labels.unlink()
    records, errors, _ = read_all(open_images(source), tmp_path / "g")
    assert errors == [] and len(records) == 2
    write_open_images(source)
    with pytest.raises(DataError, match="oi_test: found .*class-descriptions-boxable.csv, .*expected one file that matches"):
        read_all(open_images(source), tmp_path / "g2")


def test_boxes_without_area_outside_and_sticking_out(source: Path, tmp_path: Path) -> None:
    bad = [
        line(FIRST, "/m/07j7r", 0.5, 0.5, 0, 1),
        line(FIRST, "/m/07j7r", 1.5, 2, 0, 1),
        line(FIRST, "/m/07j7r", "nan", 1, 0, 1),
        line(FIRST, "/m/07j7r", -0.25, 0.75, 0, 1),
        line(SECOND, "/m/07j7r", 0, 1, 0, 1, group=1),
    ]
    write_open_images(source, lines=bad)
    records, errors, _ = read_all(open_images(source), tmp_path / "g")
    assert [record.objects for record in records] == [(DetectedObject("Tree", Box(0, 0, 48, 48)),)]
    where = "expected at least half of an area within 64x48"
    assert [str(error) for error in errors] == [
        f"oi_test record {FIRST}: field objects[0].box: found 32,0,32,48, {where}",
        f"oi_test record {FIRST}: field objects[1].box: found 96,0,128,48, {where}",
        f"oi_test record {FIRST}: field objects[2].box: found nan,0,64,48, {where}",
        f"oi_test record {SECOND}: field (record): found no annotation, expected at least one",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [line(FIRST, "/m/07j7r", 0, 1, 0, 1), line(SECOND, "/m/07j7r", 0, 1, 0, 1), line(FIRST, "/m/07j7r", 0, 1, 0, 1)],
            f"line 4: field ImageID: found {FIRST} again after other pictures, expected all lines of a picture together",
        ),
        ([line(FIRST, "/m/unknown", 0, 1, 0, 1)], "line 2: field LabelName: found '/m/unknown', expected one of the class descriptions"),
        ([line(FIRST, "/m/07j7r", 0, "", 0, 1)], "line 2: fields XMin, YMin, XMax, YMax: found 0, 0, , 1, expected numbers"),
        ([line(FIRST, "/m/07j7r", 0, 1, 0, 1), f"{FIRST},xclick,/m/0k"], "line 3: found 3 values, expected 13; the file may be cut off"),
        ([line(FIRST, "/m/07j7r", 0, 1, 0, "1" * 200_000)], "line 2: found what is no CSV .field larger than"),
    ],
)
def test_lines_that_do_not_fit_are_named(lines: list[str], message: str, source: Path, tmp_path: Path) -> None:
    write_open_images(source, lines=lines)
    with pytest.raises(DataError, match=message) as error:
        read_all(open_images(source), tmp_path / "g")
    assert str(error.value).startswith(str(source / "train-annotations-bbox.csv"))


def test_columns_and_files_that_are_missing(source: Path, tmp_path: Path) -> None:
    path = source / "train-annotations-bbox.csv"
    path.write_text(OPEN_IMAGES_COLUMNS.replace("XMax", "XMx") + "\n")
    with pytest.raises(DataError, match=f"{path}, line 1: field XMax: found the columns ImageID, .*XMx.*, expected XMax too"):
        read_all(open_images(source), tmp_path / "g")
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{path}, line 1: field ImageID: found the columns \(an empty file\), expected ImageID too"):
        read_all(open_images(source), tmp_path / "g2")
    path.write_text(OPEN_IMAGES_COLUMNS + "\n")
    with pytest.raises(DataError, match="oi_test: found no picture of OpenImages"):
        read_all(open_images(source), tmp_path / "g3")
    path.write_bytes(OPEN_IMAGES_COLUMNS.encode() + b"\n\xff\n")
    with pytest.raises(DataError, match=f"{path}, after line .: found bytes that are no UTF-8"):
        read_all(open_images(source), tmp_path / "g7")
    path.unlink()
    with pytest.raises(DataError, match="oi_test: found no train-annotations-bbox.csv or oidv"):
        read_all(open_images(source), tmp_path / "g4")
    labels = source / "class-descriptions-boxable.csv"
    labels.write_text("/m/07j7r,Tree\n/m/07j7r,Car\n")
    with pytest.raises(DataError, match=f"{labels}, line 2: field LabelName: found /m/07j7r twice"):
        read_all(open_images(source), tmp_path / "g5")
    labels.write_text("/m/07j7r\n")
    with pytest.raises(DataError, match=f"{labels}, line 1: found 1 values, expected LabelName and DisplayName"):
        read_all(open_images(source), tmp_path / "g6")
    with pytest.raises(DataError, match="d: option split: found 'val', expected one of train, validation, test"):
        OpenImages("s", "d", split="val")
