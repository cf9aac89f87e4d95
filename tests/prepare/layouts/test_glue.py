from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import LabelledText
from ofa_jax.prepare.layouts.glue import Glue
from tests.prepare.layouts.fixtures.reading import found, ids, sentences
from tests.prepare.layouts.fixtures.streamed import write_parquet, write_tsv
from tests.prepare.layouts.labelled_fixtures import MSR_HEADER, write_glue, write_msr

# Task -> what its first training record and the last of its last split hold.
EXPECTED = {
    "cola": [("Our friends won't buy this.", "", "acceptable"), ('They "drank the pub.', "", "unacceptable")],
    "mnli": [("You can go.", "You may leave.", "entailment"), ("A man eats.", "He sleeps.", "contradiction")],
    "mrpc": [("Amrozi accused him .", 'He " accused " him .', "equivalent"), ("One .", "Two .", "not_equivalent")],
    "qnli": [("When did it end?", "It ended in 1806.", "entailment"), ("Who won?", "It rained.", "not_entailment")],
    "qqp": [("How old is it?", "What is its age?", "equivalent"), ("What is it?", "Where is it?", "not_equivalent")],
    "rte": [("Oil fell.", "Oil rose.", "not_entailment"), ("Cats are pets.", "A cat is a pet.", "entailment")],
    "sst2": [("hide new secretions", "", "negative"), ("a charming film", "", "positive")],
}


def said(record: Any) -> tuple[str, str, str]:
    assert isinstance(record, LabelledText)
    return record.text, record.text2, record.answer


@pytest.mark.parametrize("task", EXPECTED)
def test_labels_have_names_in_every_task(task: str, tmp_path: Path) -> None:
    write_glue(tmp_path)
    layout = Glue(str(tmp_path), task, subset=task)
    splits = ["train", "validation_matched", "validation_mismatched"] if task == "mnli" else ["train", "validation"]
    assert [item.split for item in layout.inputs(tmp_path)] == splits
    records = found(layout)
    assert [said(records[0]), said(records[-1])] == EXPECTED[task]
    assert records[0].record_id == "train/1" and records[-1].record_id.startswith(splits[-1])
    inside = Glue(str(next(tmp_path.glob(layout.inputs(tmp_path)[0].path.split("/")[-2]))), task, subset=task)
    assert found(inside) == records


def test_microsofts_own_file_is_split_by_the_official_ids(tmp_path: Path) -> None:
    write_msr(tmp_path)
    records = found(Glue(str(tmp_path), "mrpc", subset="mrpc"))
    assert [(one.record_id, *said(one)) for one in records] == [
        ("train/1", *EXPECTED["mrpc"][0]),
        ("train/3", "Three .", "3 .", "equivalent"),
        ("validation/2", *EXPECTED["mrpc"][1]),
    ]
    (tmp_path / "dev_ids.tsv").write_text("7\n")
    with pytest.raises(DataError, match=r"dev_ids.tsv: found '7', expected two ids a line"):
        found(Glue(str(tmp_path), "mrpc", subset="mrpc"))
    (tmp_path / "dev_ids.tsv").unlink()
    with pytest.raises(DataError, match=r"found no \*\*/dev_ids.tsv or .*, expected them as https://gluebenchmark.com/tasks describes"):
        found(Glue(str(tmp_path), "mrpc", subset="mrpc"))


def test_hugging_faces_numbers_are_those_of_its_card(tmp_path: Path) -> None:
    (tmp_path / "mnli").mkdir()
    for split in ("train", "validation_matched", "validation_mismatched"):
        columns = {"premise": ["a", "b", "c", "d"], "hypothesis": ["e", "f", "g", "h"], "label": [0, 1, 2, -1], "idx": [0, 1, 2, 3]}
        write_parquet(tmp_path / "mnli" / f"{split}-00000-of-00001.parquet", columns)
    layout = Glue(str(tmp_path), "mnli", subset="mnli")
    assert [said(one) for one in found(layout)[:3]] == [("a", "e", "entailment"), ("b", "f", "neutral"), ("c", "g", "contradiction")]
    assert ids(layout)[:2] == ["train-00000-of-00001/1", "train-00000-of-00001/2"]
    assert sentences(layout)[0] == "mnli record train-00000-of-00001/4: field label: found '-1', expected 0 or 1 or 2"


def test_rows_that_cannot_be_used_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    write_glue(tmp_path)
    names = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    rows = [names.split("\t"), ("1", "2", "3", "cut off"), ("2", "2", "3", "one?", " ", "1"), ("3", "2", "3", "one?", "two?", "yes")]
    write_tsv(tmp_path / "QQP" / "train.tsv", [*rows, ("4", "2", "3", "one?", "two?", "1\r")])
    with (tmp_path / "QQP" / "train.tsv").open("ab") as file:
        file.write(b"5\t2\t3\tcaf\xe9?\ttwo?\t1\n")
    layout = Glue(str(tmp_path), "qqp", subset="qqp")
    assert ids(layout)[0] == "train/4"
    assert sentences(layout) == [
        "qqp record train/1: field (row): found 4 cells, expected 6: id, qid1, qid2, question1, question2, is_duplicate",
        "qqp record train/2: field question2: found ' ', expected at least one word",
        "qqp record train/3: field is_duplicate: found 'yes', expected 0 or 1",
        "qqp record train/5: field question1: found 'caf\\udce9?' (no UTF-8 at 3), expected text in UTF-8",
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sst: option subset: found 'sst', .*sst2"):
        Glue(str(tmp_path), "sst", subset="sst")
    with pytest.raises(DataError, match=r"rte: found neither RTE/train.tsv nor rte/train-\*.parquet in .*, expected one of them as https"):
        found(Glue(str(tmp_path), "rte", subset="rte"))
    write_glue(tmp_path)
    (tmp_path / "RTE" / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"rte: found no RTE/dev.tsv in"):
        found(Glue(str(tmp_path), "rte", subset="rte"))
    write_tsv(tmp_path / "MRPC" / "train.tsv", [MSR_HEADER[1:]])
    with pytest.raises(DataError, match=r"MRPC/train.tsv: column Quality: found columns #1 ID"):
        found(Glue(str(tmp_path), "mrpc", subset="mrpc"))
