"""Metrics files: nothing is doubled by a resume, nothing is lost by a kill."""

import json
import math
import resource

import pytest

from ofa_jax.monitor.writers import JsonLines, TensorBoard


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resume_drops_later_and_cut_off_lines(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = JsonLines(path, step=0)
    assert writer.last is None
    for step in (10, 20, 30):
        writer.write({"step": step, "loss/total": 1.0 / step})
    with path.open("a") as file:
        file.write('{"step": 40, "lo')
    resumed = JsonLines(path, step=20)
    assert resumed.last == {"step": 20, "loss/total": 0.05}
    resumed.write({"step": 30, "loss/total": 7.0})
    resumed.close()
    assert [(line["step"], line["loss/total"]) for line in lines_of(path)] == [(10, 0.1), (20, 0.05), (30, 7.0)]


def test_every_line_is_on_disk_at_once_and_is_json(tmp_path):
    writer = JsonLines(tmp_path / "m.jsonl", step=0)
    writer.write({"step": 1, "loss/total": math.nan, "optimizer/grad_norm": math.inf})
    assert lines_of(tmp_path / "m.jsonl") == [{"step": 1, "loss/total": None, "optimizer/grad_norm": None}]
    writer.close()


def test_tensorboard_events_are_written(tmp_path):
    board = TensorBoard(tmp_path / "board", step=5)
    board.write({"step": 6, "data_step": 5, "loss/total": 0.25})
    board.close()
    [events] = (tmp_path / "board").glob("events*")
    content = events.read_bytes()
    assert b"loss/total" in content
    assert b"data_step" not in content


def test_a_disk_that_takes_no_more_is_an_error_of_the_write(tmp_path):
    """Not a thread that ends without a word: the run would wait for it for ever."""
    board = TensorBoard(tmp_path, step=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            for step in range(1, 50):
                board.write({"step": step, "loss/total": 0.25})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    board.close()
