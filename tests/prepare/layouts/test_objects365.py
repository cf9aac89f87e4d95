from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Box, DetectedObject
from ofa_jax.prepare.layouts import base, gathered
from ofa_jax.prepare.layouts.base import Annotated
from ofa_jax.prepare.layouts.objects365 import Objects365
from tests.prepare.layouts.annotated_fixtures import edit_json, read_all, write_objects365


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_objects365(tmp_path / "o365")
    return tmp_path / "o365"


def objects(source: Path, **options: Any) -> Objects365:
    return Objects365(str(source), "o365_test", **options)


def test_objects_by_picture(source: Path, tmp_path: Path) -> None:
    records, errors, lines = read_all(objects(source), tmp_path / "g")
    assert errors == [] and lines == ["o365_test: 2 pictures; 1 objects left out that are groups (iscrowd)"]
    assert [(record.record_id, record.objects) for record in records] == [
        ("12", (DetectedObject("Person", Box(0.5, 0.5, 20.75, 10.5)),)),
        ("420917", (DetectedObject("Cabinet/shelf", Box(4, 6, 14, 18)), DetectedObject("Person", Box(30, 6, 40, 18)))),
    ]
    assert records[1].image == (source / "train" / "patch8" / "objects365_v1_00420917.jpg").read_bytes()
    assert objects(source).picture_key("12") == "objects365/12"


def test_a_picture_that_is_in_no_archive_is_an_error_of_its_record(source: Path, tmp_path: Path) -> None:
    picture = source / "train" / "patch0" / "objects365_v2_00000012.jpg"
    picture.unlink()
    records, errors, _ = read_all(objects(source), tmp_path / "g")
    assert [record.record_id for record in records] == ["420917"]
    assert [str(error) for error in errors] == [f"o365_test record 12: field image: found no such file, expected the picture {picture}"]


def test_the_annotations_may_lie_in_a_folder_and_be_of_val(tmp_path: Path) -> None:
    write_objects365(tmp_path / "o365", split="val")
    (tmp_path / "o365" / "annotations").mkdir()
    (tmp_path / "o365" / "zhiyuan_objv2_val.json").rename(tmp_path / "o365" / "annotations" / "zhiyuan_objv2_val.json")
    records, errors, _ = read_all(objects(tmp_path / "o365", split="val"), tmp_path / "g")
    assert errors == [] and len(records) == 2


def test_arrays_in_any_order(source: Path, tmp_path: Path) -> None:
    before, _, _ = read_all(objects(source), tmp_path / "g")

    def turn(content: dict[str, Any]) -> None:
        for name in ("annotations", "categories", "images"):
            content[name] = content.pop(name)

    edit_json(source / "zhiyuan_objv2_train.json", turn)
    assert read_all(objects(source), tmp_path / "g2")[0] == before


def test_files_that_do_not_fit_are_named(source: Path, tmp_path: Path) -> None:
    path = source / "zhiyuan_objv2_train.json"
    edit_json(path, lambda c: c["images"][0].update(file_name="objects365_v1_00420917.jpg"))
    with pytest.raises(
        DataError, match=f"{path}: images: field file_name: found 'objects365_v1_00420917.jpg', expected one that ends in patch"
    ):
        read_all(objects(source), tmp_path / "g")
    edit_json(path, lambda c: c["categories"].append(c["categories"][0]))
    with pytest.raises(DataError, match=f"{path}: categories: field id: found 1 twice, expected every id once"):
        read_all(objects(source), tmp_path / "g2")


def test_parts_hold_some_pictures_each_in_order(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_a_part(folder: Path, split: str, items: Any) -> None:
        base.write_parts(folder, split, items, per_part=1)

    monkeypatch.setattr(gathered, "write_parts", one_a_part)
    records, _, _ = read_all(objects(source), tmp_path / "g")
    assert [record.record_id for record in records] == ["12", "420917"]
    assert [item.name for item in objects(source).inputs(tmp_path / "g")] == ["train-00000", "train-00001"]


def test_texts_with_other_ends_of_lines_stay_one_line(source: Path, tmp_path: Path) -> None:
    label = "a\u2028b\x85c\x0bd"
    edit_json(source / "zhiyuan_objv2_train.json", lambda c: c["categories"][0].update(name=label))
    records, errors, _ = read_all(objects(source), tmp_path / "g")
    assert errors == [] and records[0].objects[0].label == label


def test_annotated_defaults() -> None:
    assert (Annotated("1", "a.jpg").relative, Annotated("1", "a.jpg").crop) == (False, None)
