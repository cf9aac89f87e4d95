from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Box, Caption, DetectedObject
from ofa_jax.prepare.layouts.coco import Coco
from tests.prepare.layouts.annotated_fixtures import edit_json, read_all, write_coco

TRAIN = "annotations/{}_train2014.json"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_coco(tmp_path / "coco")
    return tmp_path / "coco"


def coco(source: Path, **options: Any) -> Coco:
    return Coco(str(source), "coco_test", **options)


def test_captions_with_object_words(source: Path, tmp_path: Path) -> None:
    layout = coco(source)
    records, errors, _ = read_all(layout, tmp_path / "g")
    assert errors == []
    assert [record.record_id for record in records] == ["9", "25"]  # not the order of the file
    first, second = records
    assert first.captions == (Caption("A small red bird."),) and first.dataset == "coco_test"
    assert second.captions == (Caption("A Person at a dining table, no persons.", ("dining table", "person")), Caption("Someone eats."))
    assert second.image == (source / "train2014" / "COCO_train2014_000000000025.jpg").read_bytes()
    assert (second.width, second.height, second.objects, second.regions, second.questions) == (64, 48, (), (), ())
    assert layout.inputs(tmp_path / "g")[0].split == "train"
    assert layout.picture_key("25") == "coco/25"


def test_captions_without_instances_say_so(source: Path, tmp_path: Path) -> None:
    (source / "annotations" / "instances_train2014.json").unlink()
    records, _, lines = read_all(coco(source), tmp_path / "g")
    assert [caption.objects for record in records for caption in record.captions] == [(), (), ()]
    assert lines == ["coco_test: no annotations/instances_*2014.json: captions carry no object words"]


def test_objects_leave_crowds_out_and_cut_what_sticks_out(source: Path, tmp_path: Path) -> None:
    records, errors, lines = read_all(coco(source, what="objects"), tmp_path / "g")
    assert errors == []
    assert records[0].objects == (DetectedObject("person", Box(60, 40, 64, 48)),)
    assert records[1].objects == (DetectedObject("dining table", Box(4, 6, 14, 18)), DetectedObject("person", Box(1.5, 2, 4.5, 6)))
    assert lines == ["coco_test: 2 pictures; 1 objects left out that are groups (iscrowd)"]


def test_the_layout_of_2017_and_its_validation_split(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", year=2017)
    layout = coco(tmp_path / "coco", year=2017, split="val")
    records, errors, _ = read_all(layout, tmp_path / "g")
    assert errors == [] and [record.record_id for record in records] == ["30", "31"]
    assert layout.inputs(tmp_path / "g")[0].name == "val-00000"


def test_karpathy_splits(source: Path, tmp_path: Path) -> None:
    ids = {}
    for split in ("train", "val", "test"):
        layout = coco(source, karpathy="dataset_coco.json", split=split)
        if split == "test":
            with pytest.raises(DataError, match=r"coco_test: found no picture of Coco\(.*split='test'.*expected at least one"):
                read_all(layout, tmp_path / split)
            continue
        records, errors, _ = read_all(layout, tmp_path / split)
        assert errors == []
        ids[split] = [record.record_id for record in records]
    assert ids == {"train": ["9", "25", "30"], "val": ["31"]}
    records, _, _ = read_all(coco(source, karpathy="dataset_coco.json"), tmp_path / "again")
    assert records[2].captions == (Caption("A person in picture 30.", ("person",)),)  # from the objects of val
    assert records[0].captions == (Caption("A person in picture 9.", ("person",)),)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("captions", lambda c: c["annotations"][0].pop("caption"), "annotations: field caption: found no such field in .* expected a text"),
        ("captions", lambda c: c["annotations"][0].update(image_id=77), "annotations: field image_id: found 77, expected an id of images"),
        ("captions", lambda c: c["images"].append(c["images"][0]), "images: field id: found 25 twice, expected every id once"),
        ("captions", lambda c: c.pop("images"), "field images: found no such field, expected an array"),
        ("instances", lambda c: c["annotations"][0].update(image_id=77), "annotations: field image_id: found 77, expected an id of images"),
        ("instances", lambda c: c["categories"].pop(0), "field category_id: found 1 in annotation 2, expected an id of categories"),
        ("instances", lambda c: c["annotations"][0].pop("bbox"), "annotations: field bbox: found no such field"),
        (
            "instances",
            lambda c: c["annotations"][0]["bbox"].pop(),
            r"field bbox: found \[4, 6, 10\] in annotation 1, expected four numbers",
        ),
        ("instances", lambda c: c["annotations"][0].update(bbox=[0, 0, "1", 1]), "field bbox: .* expected four numbers"),
        ("instances", lambda c: c["annotations"][0].update(bbox=[0, 0, 10**400, 1]), "field bbox: .* expected four numbers"),
        ("instances", lambda c: c["images"][0].update(id="25"), "images: field id: found '25' in .* expected a whole number"),
    ],
)
def test_files_that_do_not_fit_are_named(file: str, change: Any, message: str, source: Path, tmp_path: Path) -> None:
    path = source / TRAIN.format(file)
    edit_json(path, change)
    with pytest.raises(DataError, match=message) as error:
        read_all(coco(source, what="captions" if file == "captions" else "objects"), tmp_path / "g")
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("box", "listed"),
    [
        ([4, 6, 0, 12], "4,6,4,18"),
        ([64, 6, 10, 12], "64,6,74,18"),
        ([60, 6, 40, 12], "60,6,100,18"),
        ([4, 6, -2, 12], "4,6,2,18"),
        ([float("nan"), 0, 5, 5], "nan,0,nan,5"),
    ],
)
def test_a_box_without_area_or_outside_is_an_error_of_its_record(box: list[float], listed: str, source: Path, tmp_path: Path) -> None:
    edit_json(source / TRAIN.format("instances"), lambda c: c["annotations"][0].update(bbox=box))
    records, errors, _ = read_all(coco(source, what="objects"), tmp_path / "g")
    assert [str(error) for error in errors] == [
        f"coco_test record 25: field objects[0].box: found {listed}, expected at least half of an area within 64x48"
    ]
    assert len(records[1].objects) == 1


def test_missing_and_broken_pictures_and_pictures_without_annotation(source: Path, tmp_path: Path) -> None:
    first = source / "train2014" / "COCO_train2014_000000000009.jpg"
    first.unlink()
    edit_json(source / TRAIN.format("captions"), lambda c: c["annotations"].pop(0) and c["annotations"].pop(1))
    records, errors, _ = read_all(coco(source), tmp_path / "g")
    assert records == []
    assert [(error.reason, str(error)) for error in errors] == [
        ("image", f"coco_test record 9: field image: found no such file, expected the picture {first}"),
        ("empty", "coco_test record 25: field (record): found no annotation, expected at least one"),
    ]
    first.write_bytes(b"\xff\xd8 no picture")
    _, errors, _ = read_all(coco(source), tmp_path / "g2")
    assert errors[0].reason == "image" and "found 13 bytes starting with ff d8" in str(errors[0])


def test_missing_and_cut_files(source: Path, tmp_path: Path) -> None:
    path = source / TRAIN.format("captions")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{path}: found text that does not parse or ends too early"):
        read_all(coco(source), tmp_path / "g")
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"{path}: found the end of the file after 0 characters, expected a JSON object"):
        read_all(coco(source), tmp_path / "g2")
    path.unlink()
    with pytest.raises(DataError, match="coco_test: found no annotations/captions_train2014.json in .* as https://cocodataset.org"):
        read_all(coco(source), tmp_path / "g3")
    with pytest.raises(DataError, match="found no parts in .*nothing, expected those that `gather` writes"):
        coco(source).inputs(tmp_path / "nothing")


def test_options_are_checked() -> None:
    with pytest.raises(DataError, match="d: option what: found 'caption', did you mean captions?"):
        Coco("s", "d", what="caption")
    with pytest.raises(DataError, match="d: option split: found 'test', expected one of train, val"):
        Coco("s", "d", split="test")
    with pytest.raises(DataError, match="d: option karpathy: found it with objects of 2014, expected captions of 2014"):
        Coco("s", "d", what="objects", karpathy="dataset_coco.json")
    with pytest.raises(DataError, match="d: found the path /x.json, expected one below the source, s"):
        Coco("s", "d", karpathy="/x.json").gather(Path("."), print)


def test_several_splits_of_one_data_set(source: Path, tmp_path: Path) -> None:
    layout = coco(source, karpathy="dataset_coco.json", splits=("train", "validation=val"))
    records, errors, _ = read_all(layout, tmp_path / "g")
    assert errors == [] and [record.record_id for record in records] == ["9", "25", "30", "31"]
    assert [(item.name, item.split) for item in layout.inputs(tmp_path / "g")] == [
        ("train-00000", "train"),
        ("validation-00000", "validation"),
    ]
    for wrong in ("validation=nothing", "a b"):
        with pytest.raises(DataError, match="option split"):
            read_all(coco(source, splits=(wrong,)), tmp_path / wrong.replace(" ", ""))
