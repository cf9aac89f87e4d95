from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Box, Caption, DetectedObject, Question, Region
from ofa_jax.data.transforms.image import decode_image
from ofa_jax.prepare.layouts.visual_genome import VisualGenome
from tests.prepare.layouts.annotated_fixtures import edit_json, read_all, write_visual_genome


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_visual_genome(tmp_path / "vg")
    return tmp_path / "vg"


def genome(source: Path, what: str) -> VisualGenome:
    return VisualGenome(str(source), "vg_test", what=what)


def test_large_regions_are_captions_of_pictures_of_their_own(source: Path, tmp_path: Path) -> None:
    records, errors, _ = read_all(genome(source, "captions"), tmp_path / "g")
    assert errors == []
    assert [(record.record_id, record.captions, record.width, record.height) for record in records] == [
        ("1/12", (Caption("a wall"),), 129, 130),
        ("1/13", (Caption("a door"),), 100, 165),
        ("2/21", (Caption("the whole of two"),), 200, 180),
    ]
    whole = decode_image((source / "VG_100K_2" / "1.jpg").read_bytes())
    part = decode_image(records[0].image)
    assert part.shape == (130, 129, 3)
    assert np.abs(part.astype(int) - whole[20:150, 30:159]).max() <= 6  # it was encoded again
    assert genome(source, "captions").picture_key("1/12") == "visual_genome/1"


def test_small_regions_stay_in_the_whole_picture(source: Path, tmp_path: Path) -> None:
    records, errors, _ = read_all(genome(source, "regions"), tmp_path / "g")
    assert errors == []
    assert [(record.record_id, record.regions) for record in records] == [
        ("1", (Region("exactly 16,384", Box(10, 20, 138, 148)),)),
        ("2", (Region("a clock", Box(5, 6, 25, 16)),)),
    ]
    assert records[1].image == (source / "VG_100K" / "2.jpg").read_bytes()


def test_pictures_without_regions_of_a_size_are_counted(source: Path, tmp_path: Path) -> None:
    edit_json(source / "region_descriptions.json", lambda c: c[0]["regions"].pop())
    records, errors, lines = read_all(genome(source, "regions"), tmp_path / "g")
    assert [record.record_id for record in records] == ["1"] and errors == []
    assert lines == ["vg_test: 1 of 2 pictures have no region of at most 16384 square pixels"]


def test_questions_are_as_vqa_has_them(source: Path, tmp_path: Path) -> None:
    records, errors, _ = read_all(genome(source, "questions"), tmp_path / "g")
    assert errors == []
    assert records[0].questions == (Question("What color is the wall?", "light yellow", kind="what", question_id=101),)
    assert records[1].questions == (
        Question("How many clocks are there?", "two", kind="how many", question_id=202),
        Question("Is it green?", "yes", question_id=201),
    )


def test_objects(source: Path, tmp_path: Path) -> None:
    edit_json(source / "objects.json", lambda c: c[1]["objects"].append({**c[1]["objects"][0], "names": []}))
    records, errors, _ = read_all(genome(source, "objects"), tmp_path / "g")
    assert [str(error) for error in errors] == ["vg_test record 1: field objects[1].text: found '', expected at least one word"]
    assert records[0].objects == (DetectedObject("wall", Box(0, 0, 200, 100)),)
    assert records[1].objects == (DetectedObject("clock", Box(5, 6, 25, 16)),)


def test_a_picture_of_which_nothing_is_said_is_an_error_of_its_record(source: Path, tmp_path: Path) -> None:
    edit_json(source / "question_answers.json", lambda c: c.pop())
    records, errors, _ = read_all(genome(source, "questions"), tmp_path / "g")
    assert [record.record_id for record in records] == ["2"]
    assert [str(error) for error in errors] == ["vg_test record 1: field (record): found no annotation, expected at least one"]


def test_a_region_to_cut_out_that_lies_outside(source: Path, tmp_path: Path) -> None:
    edit_json(source / "region_descriptions.json", lambda c: c[0]["regions"][0].update(x=150))
    edit_json(source / "region_descriptions.json", lambda c: c[1]["regions"][1].update(x=100))  # 29 of 129 columns stick out
    records, errors, _ = read_all(genome(source, "captions"), tmp_path / "g")
    assert [(record.record_id, record.width) for record in records] == [("1/12", 100), ("1/13", 100)]
    expected = "vg_test record 2/21: field crop: found 150,0,350,180, expected at least half of an area within 200x180"
    assert [(error.reason, str(error)) for error in errors] == [("box_outside", expected)]


def test_pictures_to_cut_that_are_cut_off_or_missing(source: Path, tmp_path: Path) -> None:
    picture = source / "VG_100K_2" / "1.jpg"
    picture.write_bytes(picture.read_bytes()[:-200])
    (source / "VG_100K" / "2.jpg").unlink()
    records, errors, _ = read_all(genome(source, "captions"), tmp_path / "g")
    assert records == []
    assert [(error.record, error.reason, error.field) for error in errors] == [(id, "image", "image") for id in ("1/12", "1/13", "2/21")]
    assert "bytes that does not decode" in str(errors[0]) and "found no such file" in str(errors[2])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("region_descriptions", lambda c: c[0]["regions"][0].pop("phrase"), "regions: field phrase: found no such field"),
        ("region_descriptions", lambda c: c[0]["regions"][0].update(x="1"), "regions: field x: found '1' in .* expected a number"),
        ("region_descriptions", lambda c: c.append(c[0]), "pictures: field id: found 2 twice"),
        ("region_descriptions", lambda c: c[0].update(id=3), "field image_id: found 3, expected an id of image_data.json"),
        (
            "image_data",
            lambda c: c[0].update(url="http://x/2.jpg"),
            "field url: found 'http://x/2.jpg' of picture 2, expected one that ends in VG_100K",
        ),
        ("image_data", lambda c: c.append(c[0]), "pictures: field id: found 2 twice"),
        ("image_data", lambda c: c.insert(0, 5), "pictures: found 5, expected an object with image_id"),
    ],
)
def test_files_that_do_not_fit_are_named(file: str, change: Any, message: str, source: Path, tmp_path: Path) -> None:
    edit_json(source / f"{file}.json", change)
    with pytest.raises(DataError, match=message) as error:
        read_all(genome(source, "captions"), tmp_path / "g")
    assert str(error.value).startswith(str(source / f"{file}.json"))


def test_options_are_checked() -> None:
    with pytest.raises(DataError, match="d: option what: found 'qa', expected one of captions, regions, questions, objects"):
        VisualGenome("s", "d", what="qa")


def test_it_has_one_split(tmp_path: Path) -> None:
    write_visual_genome(tmp_path / "vg")
    layout = VisualGenome(str(tmp_path / "vg"), "vg_test", splits=("train", "validation"))
    with pytest.raises(DataError, match="option splits: found train, validation, expected none: the data set has one split"):
        read_all(layout, tmp_path / "g")
