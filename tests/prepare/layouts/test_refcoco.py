from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Box, Region
from ofa_jax.prepare.layouts.refcoco import RefCoco
from tests.prepare.layouts.annotated_fixtures import edit_json, read_all, write_pickle, write_refcoco

REFERENCES = "refcoco/refs(unc).p"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_refcoco(tmp_path / "refer")
    return tmp_path / "refer"


def refcoco(source: Path, **options: Any) -> RefCoco:
    return RefCoco(str(source), "ref_test", **options)


def test_a_region_for_every_sentence(source: Path, tmp_path: Path) -> None:
    records, errors, lines = read_all(refcoco(source), tmp_path / "g")
    assert errors == [] and lines == ["ref_test: 3 references in 2 pictures"]
    assert [(record.record_id, record.regions) for record in records] == [
        ("72", (Region("café sign", Box(0, 0, 8.5, 8)),)),
        (
            "581857",
            (
                Region("the lady with the blue shirt", Box(4, 6, 14, 18)),
                Region("lady", Box(4, 6, 14, 18)),
                Region("man", Box(20, 6, 30, 18)),
            ),
        ),
    ]
    assert records[1].image == (source / "images/mscoco/images/train2014/COCO_train2014_000000581857.jpg").read_bytes()
    assert refcoco(source).picture_key("72") == "coco/72"
    records, _, _ = read_all(refcoco(source, split="val"), tmp_path / "val")
    assert [record.record_id for record in records] == ["100"]


@pytest.mark.parametrize(("subset", "split_by"), [("refcoco+", "unc"), ("refcocog", "umd"), ("refcocog", "google")])
def test_the_other_sets(subset: str, split_by: str, tmp_path: Path) -> None:
    write_refcoco(tmp_path / "refer", subset=subset, split_by=split_by)
    layout = refcoco(tmp_path / "refer", subset=subset, split_by="" if split_by != "google" else "google")
    records, errors, _ = read_all(layout, tmp_path / "g")
    assert errors == [] and len(records) == 2


def test_texts_of_python_3_are_read_too(source: Path, tmp_path: Path) -> None:
    content = pickle.loads((source / REFERENCES).read_bytes(), encoding="utf-8")
    (source / REFERENCES).write_bytes(pickle.dumps(content))
    records, errors, _ = read_all(refcoco(source), tmp_path / "g")
    assert errors == [] and records[0].regions[0].text == "café sign"


class _Evil:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_names_a_class_is_refused_and_not_run(protocol: int, source: Path, tmp_path: Path) -> None:
    path = source / REFERENCES
    path.write_bytes(pickle.dumps([_Evil(f"touch {tmp_path / 'run'}")], protocol=protocol))
    with pytest.raises(
        DataError, match=r"refs\(unc\).p: found the class \w+.system in the pickle, expected lists, dicts, texts and numbers"
    ):
        read_all(refcoco(source), tmp_path / "g")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"found what does not unpickle \(EOFError: .*\), expected a list of references"),
        (b"(lp0\n(dp1\nS'sent", "found what does not unpickle"),
        (b"not a pickle", "found what does not unpickle"),
        (pickle.dumps({"a": 1}), "found {'a': 1}, expected a list of references"),
        (pickle.dumps([1]), "references: found 1, expected an object with ann_id"),
        (pickle.dumps([]), "field split: found no reference of train, expected some"),
        (b"cbuiltins\neval\n.", "found the class builtins.eval in the pickle"),
        (b"g0\n.", "found what does not unpickle"),
    ],
)
def test_damaged_pickles_are_one_sentence(data: bytes, message: str, source: Path, tmp_path: Path) -> None:
    (source / REFERENCES).write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        read_all(refcoco(source), tmp_path / "g")
    assert str(error.value).startswith(str(source / REFERENCES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[0].pop("ann_id"), "references: field ann_id: found no such field"),
        (lambda c: c[1].update(ref_id=0), "references: field id: found 0 twice"),
        (lambda c: c[0]["sentences"][0].pop("sent"), "sentences: field sent: found no such field"),
        (
            lambda c: c[0].update(ann_id=99),
            "reference 0: field ann_id: found 99 of picture 581857 and no such annotation, expected an annotation",
        ),
        (lambda c: c[0].update(image_id=72), "reference 0: field ann_id: found 1719310 of picture 72 and it in picture 581857"),
    ],
)
def test_references_that_do_not_fit_are_named(change: Any, message: str, source: Path, tmp_path: Path) -> None:
    content = pickle.loads((source / REFERENCES).read_bytes(), encoding="utf-8")
    change(content)
    write_pickle(source / REFERENCES, content)
    with pytest.raises(DataError, match=message):
        read_all(refcoco(source), tmp_path / "g")


def test_instances_that_do_not_fit_are_named(source: Path, tmp_path: Path) -> None:
    path = source / "refcoco" / "instances.json"
    edit_json(path, lambda c: c["annotations"].append(c["annotations"][0]))
    with pytest.raises(DataError, match=f"{path}: annotations: field id: found 1719310 twice"):
        read_all(refcoco(source), tmp_path / "g")
    edit_json(path, lambda c: c["annotations"].pop() and c["annotations"][0].update(bbox=[1, 2]))
    with pytest.raises(DataError, match=rf"{path}: annotations: field bbox: found \[1, 2\] in annotation 1719310, expected four numbers"):
        read_all(refcoco(source), tmp_path / "g2")


def test_a_box_outside_and_an_empty_sentence_are_errors_of_their_record(source: Path, tmp_path: Path) -> None:
    edit_json(source / "refcoco" / "instances.json", lambda c: c["annotations"][0].update(bbox=[60, 6, 40, 12]))
    content = pickle.loads((source / REFERENCES).read_bytes(), encoding="utf-8")
    content[2]["sentences"][0]["sent"] = ""
    write_pickle(source / REFERENCES, content)
    records, errors, _ = read_all(refcoco(source), tmp_path / "g")
    assert [record.record_id for record in records] == ["581857"] and len(records[0].regions) == 1
    assert [(error.record, error.reason) for error in errors] == [
        ("72", "empty_text"),
        ("72", "empty"),
        ("581857", "box_outside"),
        ("581857", "box_outside"),
    ]


def test_options_are_checked() -> None:
    with pytest.raises(DataError, match="d: option subset: found 'refclef', did you mean refcoco"):
        RefCoco("s", "d", subset="refclef")
    with pytest.raises(DataError, match="d: option split_by: found 'umd', expected one of unc, google"):
        RefCoco("s", "d", split_by="umd")
