"""Rejects are listed and counted, and too many of them stop the run with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.batch import Reject
from ofa_jax.data.quarantine import Quarantine

IMAGE = Reject("shapes", "shapes-1", "image", "image", "3 bytes", "a whole picture")
EMPTY = Reject("prose", "#7", "empty_text", "text", "nothing", "some text")


def test_rejects_are_listed_and_counted(tmp_path: Path):
    path = tmp_path / "runs" / "rejects.jsonl"
    quarantine = Quarantine(path, max_fraction=0.5, grace=0)
    quarantine.add([], data_step=0, rows=10)
    assert not path.exists()
    quarantine.add([IMAGE, EMPTY], data_step=1, rows=10)
    quarantine.add([IMAGE], data_step=2, rows=10)
    assert (quarantine.rows, quarantine.rejected) == (30, 3)
    assert quarantine.counts() == {("shapes", "image"): 2, ("prose", "empty_text"): 1}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1] == {"data_step": 1, **EMPTY._asdict()}
    assert [line["data_step"] for line in lines] == [1, 1, 2]


def test_a_record_that_was_to_replace_another_waits_for_its_turn(tmp_path: Path):
    path = tmp_path / "rejects.jsonl"
    quarantine = Quarantine(path, max_fraction=0.5, grace=0)
    quarantine.add([IMAGE._replace(retry=1)], data_step=0, rows=10)
    assert not path.exists() and quarantine.rejected == 0
    quarantine.add([EMPTY, IMAGE._replace(retry=1), IMAGE], data_step=1, rows=10)
    assert [json.loads(line)["record"] for line in path.read_text().splitlines()] == ["#7", "shapes-1"]
    assert (quarantine.rows, quarantine.rejected) == (20, 2)


def test_the_stop_rule_names_the_commonest_reason_and_the_list(tmp_path: Path):
    quarantine = Quarantine(tmp_path / "rejects.jsonl", max_fraction=0.1, grace=30)
    quarantine.add([IMAGE, IMAGE, EMPTY], data_step=0, rows=20)
    quarantine.judge()  # within the grace
    quarantine.add([], data_step=1, rows=10)
    quarantine.judge()  # 3 of 30 is not above a tenth
    quarantine.add([IMAGE], data_step=2, rows=5)
    with pytest.raises(DataError) as stopped:
        quarantine.judge()
    assert str(stopped.value) == (
        "4 of 35 rows drawn were rejected, which is more than data.max_reject_fraction 0.1; "
        f"the commonest reason is image in dataset shapes (3 records); all are listed in {tmp_path / 'rejects.jsonl'}"
    )


def test_sums_over_all_hosts_stop_a_host_that_saw_none(tmp_path: Path):
    quarantine = Quarantine(tmp_path / "rejects.jsonl", max_fraction=0.1, grace=30)
    quarantine.judge(rejected=9, rows=90)
    with pytest.raises(DataError, match="10 of 90 rows"):
        quarantine.judge(rejected=10, rows=90)


def test_a_list_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    quarantine = Quarantine(tmp_path / "file" / "rejects.jsonl", max_fraction=0.1, grace=30)
    with pytest.raises(DataError, match="the list of rejected records .* cannot be written"):
        quarantine.add([IMAGE], data_step=0, rows=1)
