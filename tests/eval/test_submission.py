"""Leaderboard files: what they hold, that the official readers take them, and what is refused."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from ofa_jax.config.errors import DataError
from ofa_jax.eval.submission import write_captions, write_detections, write_vqa_answers


def _coco(image_ids, **more):
    coco = COCO()
    coco.dataset = {"images": [{"id": i} for i in image_ids], "annotations": [], "categories": [], **more}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _load(coco, path):
    with contextlib.redirect_stdout(io.StringIO()):
        return coco.loadRes(str(path))


def test_vqa_answers_are_written_in_their_order(tmp_path):
    path = tmp_path / "sent" / "vqa.json"
    write_vqa_answers(path, [(262148002, "yes"), (np.int64(262148000), 'a "café"')], expected_ids=[262148000, 262148002])
    assert json.loads(path.read_text()) == [
        {"question_id": 262148002, "answer": "yes"},
        {"question_id": 262148000, "answer": 'a "café"'},
    ]
    assert [p.name for p in path.parent.iterdir()] == ["vqa.json"]


def test_captions_are_read_by_pycocotools(tmp_path):
    path = tmp_path / "captions.json"
    write_captions(path, [(7, "a dog"), (3, "")], expected_ids=(3, 7, 7))  # an image has several references: its id may come twice
    assert json.loads(path.read_text()) == [{"image_id": 7, "caption": "a dog"}, {"image_id": 3, "caption": ""}]
    found = _load(_coco([3, 7]), path)
    assert [a["caption"] for a in found.loadAnns(found.getAnnIds(imgIds=[7]))] == ["a dog"]


def test_detections_become_corner_and_sides(tmp_path):
    path = tmp_path / "objects.json"
    objects = [(18, (10, 20.5, 40, 60), 0.9), (1, (30, 30, 20, 50), np.float32(0.5))]
    write_detections(path, [(5, objects), (6, [])], expected_ids=[5, 6])
    assert json.loads(path.read_text()) == [
        {"image_id": 5, "category_id": 18, "bbox": [10.0, 20.5, 30.0, 39.5], "score": 0.9},
        {"image_id": 5, "category_id": 1, "bbox": [30.0, 30.0, 0.0, 20.0], "score": 0.5},  # turned inside out: it overlaps nothing
    ]
    found = _load(_coco([5, 6], categories=[{"id": 1}, {"id": 18}]), path)
    assert sorted(a["area"] for a in found.loadAnns(found.getAnnIds())) == [0, 30 * 39.5]


@pytest.mark.parametrize(
    ("write", "value", "kind"), [(write_vqa_answers, "a", "question"), (write_captions, "a", "image"), (write_detections, [], "image")]
)
def test_wrong_ids_are_named_and_counted_and_the_old_file_stays(tmp_path, write, value, kind):
    path = tmp_path / "sent.json"
    path.write_text("old")
    given = [(i, value) for i in (1, 2, 2, 40, 41, 42, 43, 44, 45)]
    with pytest.raises(DataError) as error:
        write(path, given, expected_ids=[1, 2, 3, 4])
    assert str(error.value) == (
        f"{path} is not written: found 2 missing (3, 4), 6 unexpected (40, 41, 42, 43, 44, ...), 1 repeated (2) "
        f"among 9 {kind} ids, expected each of 4 once"
    )
    with pytest.raises(DataError, match=r"found 1 missing \(2\) among 1 "):
        write(path, [(1, value)], expected_ids=[1, 2])
    with pytest.raises(DataError, match=f"found {kind} id '1' of type str, expected an integer"):
        write(path, [("1", value)], expected_ids=[1])
    with pytest.raises(DataError, match=f"found expected {kind} id 1.0 of type float, expected an integer"):
        write(path, [(1, value)], expected_ids=[1.0])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_server_could_not_read_is_refused(tmp_path):
    path = tmp_path / "sent.json"
    with pytest.raises(DataError, match="question 1: found 'None' of type NoneType, expected a text"):
        write_vqa_answers(path, [(1, None)], expected_ids=[1])
    with pytest.raises(DataError, match="image 1: found '5' of type int, expected a text"):
        write_captions(path, [(1, 5)], expected_ids=[1])
    with pytest.raises(DataError, match=r"image 1: found box \(0.0, 0.0, nan, 1.0\) of score 1.0, expected finite numbers"):
        write_detections(path, [(1, [(1, (0, 0, float("nan"), 1), 1.0)])], expected_ids=[1])
    with pytest.raises(DataError, match="of score inf, expected finite numbers"):
        write_detections(path, [(1, [(1, (0, 0, 1, 1), float("inf"))])], expected_ids=[1])
    with pytest.raises(DataError, match="found category id 'cat' of type str"):
        write_detections(path, [(1, [("cat", (0, 0, 1, 1), 1.0)])], expected_ids=[1])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="sent.json cannot be written"):
        write_captions(tmp_path / "file" / "sent.json", [(1, "a")], expected_ids=[1])
    (tmp_path / "sent.json").mkdir()
    with pytest.raises(DataError, match="sent.json cannot be written"):
        write_captions(tmp_path / "sent.json", [(1, "a")], expected_ids=[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "sent.json"]
