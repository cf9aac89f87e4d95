"""Ends of runs: what each error counts as, and what the records of lives say to the next one."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ofa_jax.config.errors import CheckpointError, ConfigError, DataError
from ofa_jax.monitor.exits import REASONS, DivergenceError, HangError, Life, reason_of


def test_every_reason_has_a_code_of_its_own():
    codes = [reason.code for reason in REASONS.values()]
    assert len(set(codes)) == len(codes) and all(0 <= code < 126 for code in codes), "126 and above are the shell's and signals"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConfigError("x"), "config"),
        (DataError("x"), "data"),
        (CheckpointError("x"), "checkpoint"),
        (DivergenceError("x"), "nan"),
        (HangError("x"), "hang"),
        (MemoryError(), "oom"),
        (KeyboardInterrupt(), "preempted"),
        (KeyError("x"), "bug"),
        (OSError(28, "No space left on device"), "checkpoint"),
        (OSError(30, "Read-only file system"), "checkpoint"),
        (OSError(9, "Bad file descriptor"), "bug"),
        (jax.errors.JaxRuntimeError("INTERNAL: something"), "bug"),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllReduce failed: Read error [127.0.0.1]:41666: Connection reset by peer"), "hang"),
        (CheckpointError("step 5 could not be written: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:7"), "hang"),
        (DataError("gs://b/x: Connection reset by peer"), "data"),
    ],
)
def test_errors_count_as(error: BaseException, reason: str):
    assert reason_of(error) == reason


def test_a_device_that_is_full_is_out_of_memory():
    with pytest.raises(Exception) as found:
        jnp.zeros((2**44,)).block_until_ready()
    assert reason_of(found.value) == "oom"


def test_lives_are_noted_and_told_to_the_next(tmp_path: Path):
    first = Life()
    assert first.end("config") == 2 and not list(tmp_path.iterdir()), "a mistake before the start leaves no record"
    assert first.begin(tmp_path / "run", host=0, facts={"devices": "1 cpu"}) == ""
    first.step = 120
    assert first.end("preempted") == 75
    second = Life()
    said = second.begin(tmp_path / "run", host=0, facts={})
    assert said.startswith("life 1 of this run ended ") and said.endswith(" at step 120: preempted")
    third = Life()
    assert "life 2 of this run, begun " in (said := third.begin(tmp_path / "run", host=0, facts={})) and "without a word" in said
    third.end("data", "DataError: a shard is gone")
    path = tmp_path / "run" / "lives_0.jsonl"
    with path.open("a") as file:
        file.write('{"event": "st')  # cut off by a kill
    assert Life().begin(tmp_path / "run", host=0, facts={}).endswith(": data (DataError: a shard is gone)")
    records = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [record["event"] for record in records[:5]] == ["start", "end", "start", "start", "end"]
    assert records[0]["devices"] == "1 cpu" and records[4]["code"] == 65


def test_a_disk_that_takes_no_note_of_the_end_leaves_the_code(tmp_path: Path, capsys):
    life = Life()
    life.begin(tmp_path, host=0, facts={})
    (tmp_path / "lives_0.jsonl").unlink()
    (tmp_path / "lives_0.jsonl").symlink_to("/dev/full")
    assert life.end("checkpoint") == 74
    assert "the end of the run cannot be noted: [Errno 28] No space left on device" in capsys.readouterr().err
