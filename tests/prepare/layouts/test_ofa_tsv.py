from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Box, Caption, DetectedObject, ImageRecord, Question, Region, TextRecord
from ofa_jax.prepare.layouts.base import Layout
from ofa_jax.prepare.layouts.ofa_negatives import read_answer_kinds, read_negatives
from ofa_jax.prepare.layouts.ofa_tsv import OfaDetection, OfaImages, OfaText, OfaVisionLanguage
from tests.prepare.layouts.fixtures import reading
from tests.prepare.layouts.fixtures.reading import found
from tests.prepare.layouts.fixtures.streamed import encoded, jpeg, strange_pictures, write_ofa_tsv, write_tsv

# Places in the file are a test of their own; the others name rows by their uniq_id.


def bare(text: str) -> str:
    return re.sub(r"[\w.]+@\d+/", "", text)


def records(layout: Layout) -> dict[str, Any]:
    listed = reading.records(layout).values()
    return {bare(one.record_id): dataclasses.replace(one, record_id=bare(one.record_id)) for one in listed}


def ids(layout: Layout) -> list[str]:
    return [bare(name) for name in reading.ids(layout)]


def sentences(layout: Layout) -> list[str]:
    return [bare(sentence) for sentence in reading.sentences(layout)]


def faults(layout: Layout) -> list[tuple[str, str]]:
    return [(bare(error.record), error.field) for error in reading.errors(layout)]


def test_rows_that_share_an_id_are_told_apart_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("text.tsv", "more/text.tsv"):
        write_tsv(tmp_path / name, [("7", "one"), ("7", "two"), ("8", " ")])
    for size in (5, 1000):
        layout = OfaText(str(tmp_path), "texts", pattern="**/text.tsv", bytes_per_input=size)
        assert reading.ids(layout) == ["more/text@0/7", "more/text@6/7", "text@0/7", "text@6/7"]
        assert [error.record for error in reading.errors(layout)] == ["more/text@12/8", "text@12/8"]


def test_a_data_set_takes_the_rows_of_its_type(tmp_path: Path) -> None:
    write_ofa_tsv(tmp_path)
    source = str(tmp_path)
    captions = records(OfaVisionLanguage(source, "pairs"))
    assert captions["1"] == ImageRecord("1", "pairs", jpeg(1), 40, 30, (Caption("a cat on a mat", ("cat", "mat")),))
    assert captions["4"].captions == (Caption("a dog"),) and list(captions) == ["1", "4"]
    assert list(records(OfaVisionLanguage(source, "cc12m", names=("cc12m", "cc3m")))) == ["4"]
    question = Question("what is it?", "cat", 1.0)  # the first of the two largest weights
    assert records(OfaVisionLanguage(source, "vqa", row="qa")) == {"2": ImageRecord("2", "vqa", jpeg(2), 40, 30, questions=(question,))}
    kinds = f"{source}/negative_sample/type2ans.json"
    assert records(OfaVisionLanguage(source, "vqa", row="qa", answer_kinds=kinds))["2"].questions[0].kind == "what animal"
    region = Region("the left cat", Box(1.5, 2, 20, 29.5))
    assert records(OfaVisionLanguage(source, "vg", row="visual_grounding")) == {
        "3": ImageRecord("3", "vg", jpeg(3), 40, 30, regions=(region,))
    }


def test_the_other_tables(tmp_path: Path) -> None:
    write_ofa_tsv(tmp_path)
    source = str(tmp_path)
    texts = {"t1": TextRecord("t1", "texts", "one text\rof two lines"), "t2": TextRecord("t2", "texts", "another")}
    assert records(OfaText(source, "texts")) == texts and OfaText.KIND == "text"
    (image,) = records(OfaImages(source, "images")).values()
    assert (image.record_id, image.image, image.width, image.height) == ("i1", jpeg(4, width=256, height=256), 256, 256)
    assert image.codes.dtype == np.int32 and image.codes.tolist() == [code * 32 % 8192 for code in range(256)]
    assert OfaImages.NUM_CODES == 8192
    objects = (DetectedObject("cat", Box(1, 2, 11, 12)), DetectedObject("dog, the brown one", Box(0, 0, 40, 30)))
    assert records(OfaDetection(source, "objects")) == {"d1": ImageRecord("d1", "objects", jpeg(1), 40, 30, objects=objects)}


@pytest.mark.parametrize("end", ["\n", ""])
def test_ranges_of_bytes_hold_every_row_once(tmp_path: Path, end: str) -> None:
    draw = np.random.default_rng(0)
    rows = [(f"t{number}", "w" * int(draw.integers(1, 30))) for number in range(40)]
    path = tmp_path / "text.tsv"
    write_tsv(path, rows)
    path.write_bytes(path.read_bytes().rstrip(b"\n") + end.encode())
    size = path.stat().st_size
    for step in (1, 2, 3, 7, 50, size - 1, size, size + 1):
        layout = OfaText(str(tmp_path), "texts", bytes_per_input=step)
        inputs = layout.inputs(tmp_path)
        assert len(inputs) == -(-size // step) and len({item.name for item in inputs}) == len(inputs)
        listed = [one for item in inputs for one in layout.read(item)]
        assert [(bare(one.record_id), one.text) for one in listed] == rows


def test_rows_that_cannot_be_used_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    image = encoded(jpeg())
    path = tmp_path / "vision_language.tsv"
    write_tsv(
        path,
        [
            ("a", image, "columns", "", "", "", "coco"),
            ("", image, "no id", "", "", "", "coco", "caption"),
            ("c", image, "of no type", "", "", "", "coco", "ocr"),
            ("d", image[:-5] + "!", "of bad base64", "", "", "", "coco", "caption"),
            ("e", image[:41], "of base64 that is cut", "", "", "", "coco", "caption"),
            ("f", encoded(strange_pictures()["animated"][0]), "an animation", "", "", "", "coco", "caption"),
            ("g", encoded(jpeg()[:20]), "a cut header", "", "", "", "coco", "caption"),
            ("h", image, "", "", "", "", "coco", "caption"),
            ("i", image, "with the line ends of Windows", "", "", "", "coco", "caption\r"),
        ],
    )
    path.write_bytes(b"x\t\xff\n" + path.read_bytes())
    layout = OfaVisionLanguage(str(tmp_path), "own")
    assert ids(layout) == ["i"]
    said = sentences(layout)
    second = path.read_bytes().index(b"\n", 4) + 1
    assert said[:4] == [
        "own record vision_language@0: field (row): found bytes that are no UTF-8 (invalid start byte at 2), expected UTF-8",
        "own record vision_language@4: field (row): found 7 columns, "
        "expected 8: uniq_id, image, caption, question, refs, gt_objects, dataset_name, type",
        f"own record vision_language@{second}: field uniq_id: found '', expected an id",
        "own record c: field type: found 'ocr', expected caption, qa, visual_grounding",
    ]
    assert faults(layout)[4:] == [
        ("d", "image"),
        ("e", "image"),
        ("f", "image"),
        ("g", "image"),
        ("h", "captions[0].text"),
        ("h", "(record)"),
    ]
    assert said[4].startswith(f"own record d: field image: found {len(image) - 4} characters starting with '/9j/4AAQSkZJ' (")
    assert said[4].endswith("expected base64")


def test_answers_and_boxes_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    image = encoded(jpeg())
    answers = ("cat", "x|!+cat", "nan|!+cat", "2|!+cat", "0.5|!+", "1|!+cat&&dog")
    boxes = ("", "1,2,3", "1,2,x,4", "5,5,5,9", "1,2,3,4,5", "100,100,120,120")
    rows = [(f"q{n}", image, "", "what?", answer, "", "vqa", "qa") for n, answer in enumerate(answers)]
    rows += [(f"g{n}", image, "it", "", box, "", "vg", "visual_grounding") for n, box in enumerate(boxes)]
    write_tsv(tmp_path / "vision_language.tsv", rows)
    said = sentences(OfaVisionLanguage(str(tmp_path), "vqa", row="qa"))
    assert said[0] == "vqa record q0: field refs: found 'cat', expected a weight, |!+ and an answer"
    assert said[3] == "vqa record q3: field questions[0].confidence: found 2.0, expected more than 0 and at most 1"
    assert {record for record, _ in faults(OfaVisionLanguage(str(tmp_path), "vqa", row="qa"))} == {f"q{n}" for n in range(6)}
    grounding = OfaVisionLanguage(str(tmp_path), "vg", row="visual_grounding")
    said = sentences(grounding)
    assert said[1] == "vg record g1: field refs: found '1,2,3', expected x0,y0,x1,y1"
    assert said[3] == "vg record g3: field regions[0].box: found 5,5,5,9, expected at least half of an area within 40x30"
    assert {record for record, _ in faults(grounding)} == {f"g{n}" for n in range(6)} and ids(grounding) == []


def test_codes_and_objects_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    square, small = encoded(jpeg(4, width=256, height=256)), encoded(jpeg())
    good = ["7"] * 256
    codes = (good[:-1], [*good[:-1], "x"], [*good[:-1], "8192"], [*good[:-1], "-1"])
    rows = [(f"i{n}", square, " ".join(listed)) for n, listed in enumerate(codes)] + [("small", small, " ".join(good))]
    write_tsv(tmp_path / "image.tsv", rows)
    images = OfaImages(str(tmp_path), "images")
    assert ids(images) == []
    said = sentences(images)
    assert said[0] == "images record i0: field image-code: found 255 codes, expected 256"
    assert said[2] == "images record i2: field image-code: found codes from 7 to 8192, expected 0 to 8191"
    assert said[4] == "images record small: field image: found 40x30 pixels, expected 256x256" and len(said) == 5
    labels = ("", "1,2,3,4,cat", "1,2,11,12,7,cat&&1,2,x,4,7,cat&&3,3,3,9,8,dog&&1,1,5,5,9, \r")
    write_tsv(tmp_path / "detection.tsv", [(f"d{n}", small, label) for n, label in enumerate(labels)])
    (record,) = [one for one in found(OfaDetection(str(tmp_path), "objects")) if isinstance(one, ImageRecord)]
    assert record.objects == (DetectedObject("cat", Box(1, 2, 11, 12)),)
    assert faults(OfaDetection(str(tmp_path), "objects")) == [
        ("d0", "label"),
        ("d1", "label[0]"),
        ("d1", "label"),
        ("d2", "label[1]"),
        ("d2", "objects[1].box"),
        ("d2", "objects[2].text"),
    ]


def test_missing_empty_and_compressed_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"texts: found no text\*.tsv in .*, expected them as https://github.com/OFA-Sys/OFA"):
        OfaText(str(tmp_path), "texts").inputs(tmp_path)
    (tmp_path / "text.tsv").write_bytes(b"")
    assert sentences(OfaText(str(tmp_path), "texts")) == [
        f"texts record text-00000: field (file): found a file without rows, expected {tmp_path}/text.tsv whole"
    ]
    with pytest.raises(DataError, match="texts: bytes_per_input: found 0, expected 1 or more"):
        OfaText(str(tmp_path), "texts", bytes_per_input=0).inputs(tmp_path)
    (tmp_path / "text.tsv.gz").write_bytes(b"")
    with pytest.raises(DataError, match="text.tsv.gz: found a compressed file, expected plain .tsv files"):
        OfaText(str(tmp_path), "texts", pattern="text*").inputs(tmp_path)


def test_negative_samples_become_negatives(tmp_path: Path) -> None:
    write_ofa_tsv(tmp_path)
    folder = tmp_path / "negative_sample"
    answers = {"how many": ["1", "2"], "what animal": ["cat", "2"], "other": ["red", "cat"]}
    assert read_negatives(str(folder)) == {"captions": ["a cat", "a dog"], "objects": ["cat", "dog"], "answers": answers}
    assert read_answer_kinds(str(folder / "type2ans.json")) == {"1": "how many", "2": "what animal", "cat": "what animal"}


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("all_captions.txt", None, "all_captions.txt: found no such file, expected it beside"),
        ("all_captions.txt", b"a\nb\nc\xff\n", "all_captions.txt: line 3: found bytes that are no UTF-8"),
        ("object.txt", b"\n \n", "object.txt: found no line with a word, expected at least one"),
        ("type2ans.json", b"{", "type2ans.json: found what does not parse"),
        ("type2ans.json", b"[]", "type2ans.json: found list, expected an object of lists with the field other"),
        ("type2ans.json", b'{"what": ["a"]}', "type2ans.json: found the fields what, expected an object of lists with the field other"),
        ("type2ans.json", json.dumps({"other": "a"}).encode(), "field other: found 'a', expected a list of texts"),
        ("type2ans.json", json.dumps({"other": ["a", ""]}).encode(), r"field other\[1\]: found '', expected a text"),
    ],
)
def test_negative_samples_that_cannot_be_used_are_named(tmp_path: Path, file: str, content: bytes | None, sentence: str) -> None:
    write_ofa_tsv(tmp_path)
    path = tmp_path / "negative_sample" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_negatives(str(tmp_path / "negative_sample"))
