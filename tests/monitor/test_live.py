"""The live view of folders as runs leave them: what a frame says, and that it follows files that grow and are cut."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import live as command
from ofa_jax.config.errors import ConfigError
from ofa_jax.monitor.live import Follower, RunFiles, curve, frame
from ofa_jax.monitor.writers import JsonLines

ROOT = Path(__file__).resolve().parents[2]
NOW = time.time()


def append(path, *records):
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def record(step, **more):
    return {"step": step, "data_step": step - 1, "loss/total": 10.0 / step, "loss/nll/vqa": 5.0 / step, "time/left_s": 3700.0, **more}


@pytest.fixture
def run(tmp_path):
    """Two hosts in the middle of a run's second life."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"name": "small", "steps": 1000}))
    more = {
        "perf/mfu": 0.412, "perf/mfu/encoder": 0.3, "perf/mfu/decoder": 0.112, "perf/useful_tokens_per_s": 51_234.0,
        "perf/examples_per_s": 812.3, "time/step_ms": 105.0, "time/data_wait_ms": 1.5, "data/useful_tokens": 0.91,
        "goodput/step_s": 90.0, "goodput/data_s": 2.0, "goodput/save_s": 8.0, "memory/host_peak_bytes": 2.5e9,
        "memory/device_peak_bytes": 60e9, "memory/device_limit_bytes": 80e9, "optimizer/grad_norm": 1.25,
        "optimizer/grad_norm/encoder": 1.0, "optimizer/learning_rate": 1e-4, "reference/loss/total": -0.1,
    }  # fmt: skip
    append(folder / "metrics.jsonl", record(100), record(200), {"step": 200, "held_out/loss": 0.07, "held_out/nll/vqa": 0.06})
    append(folder / "metrics.jsonl", record(300, **more))
    os.utime(folder / "metrics.jsonl", (NOW - 5, NOW - 5))
    for host, step in ((0, 310), (1, 308)):
        beat = {"host": host, "step": step, "phase": "data", "since": NOW - 4, "written": NOW - (1 if host == 0 else 90)}
        (folder / f"heartbeat_{host}.json").write_text(json.dumps(beat))
        start = {"event": "start", "pid": 7, "processes": 2}
        append(folder / f"lives_{host}.jsonl", {"time": "2026-11-26T10:00:00+0000", **start})
        end = {"event": "end", "reason": "preempted", "step": 150, "message": ""}
        append(folder / f"lives_{host}.jsonl", {"time": "2026-11-26T10:30:00+0000", **end})
        append(folder / f"lives_{host}.jsonl", {"time": "2026-11-26T11:00:00+0000", **start})
    append(folder / "checkpoints.jsonl", {"event": "saved", "step": 300, "at": "2026-11-26T11:10:00+0000", "save_s": 1.5})
    append(folder / "bad_steps.jsonl", {"step": 205, "data_step": 204, "reasons": ["loss not finite"], "loss": "nan"})
    append(folder / "rejects_0.jsonl", {"data_step": 3, "dataset": "cc12m", "record": "r7", "reason": "image"})
    return folder


def test_a_frame_says_how_the_run_goes(run):
    text = frame(RunFiles(run).look(), now=NOW, width=120)
    for words in (
        "small   running   life 2   last numbers 0m05s ago", "step 310 of 1,000  31.0 %", "1h01m left",
        "10.0 % ahead  ", "812.3 examples/s",
        "51,234 useful tokens/s", "91 % of positions useful", "105 ms a step   1.5 ms of it waiting for data",
        "MFU 41.2 % (encoder 30.0, decoder 11.2)", "step 90.0 %, save 8.0 %, data 2.0 %", "host 2.50 GB   device 60.00 of 80.00 GB",
        "1.25 (encoder 1)   learning rate 0.0001", "2; host 1 is last: step 308, data since 4 s, last heard of 90 s ago",
        "silent for over a minute: 1", "host 0: ended at step 150: preempted", "11:10:00  checkpoint of step 300: saved save_s 1.5",
        "--:--:--  bad step 205 skipped: loss not finite (loss nan)", "1 rejected records in rejects_0.jsonl, the last: cc12m r7: image",
    ):  # fmt: skip
        assert words in text, words
    [row] = [row for row in text.split("\n") if row.startswith("vqa")]
    assert row.split() == ["vqa", "0.01667", "█▃▁", "0.06", "▁"]
    assert max(map(len, text.split("\n"))) <= 120


def test_a_narrow_terminal_cuts_lines(run):
    assert max(map(len, frame(RunFiles(run).look(), now=NOW, width=60).split("\n"))) == 60


def test_new_lines_are_followed_and_a_cut_file_is_read_again(run):
    files = RunFiles(run).look()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record(400))[:30])
    assert files.look().last["step"] == 300
    resumed = JsonLines(run / "metrics.jsonl", step=200)  # as a run that goes on from an older checkpoint
    resumed.write(record(210))
    resumed.close()
    assert files.look().last["step"] == 210
    assert sorted(files.curves["loss/total"]) == [100, 200, 210]


def test_a_run_that_ended_says_why(run):
    for host in (0, 1):
        os.unlink(run / f"heartbeat_{host}.json")
        end = {"event": "end", "reason": "done", "step": 1000, "message": ""}
        append(run / f"lives_{host}.jsonl", {"time": "2026-11-26T12:00:00+0000", **end})
    append(run / "metrics.jsonl", record(1000))
    text = frame(RunFiles(run).look(), now=NOW)
    assert "ended: done" in text and "100.0 %" in text and "left" not in text and "hosts" not in text


def test_a_run_that_has_just_begun_has_a_frame(tmp_path):
    append(tmp_path / "lives_0.jsonl", {"time": "2026-11-26T12:00:00+0000", "event": "start", "pid": 1, "processes": 1})
    text = frame(RunFiles(tmp_path).look(), now=NOW)
    assert "silent   life 1" in text and "step 0 of 0" in text and "started (process 1, 1 in all)" in text


def test_curves_go_from_the_lowest_to_the_highest():
    assert curve({1: 8.0, 2: 1.0, 3: 4.5}, columns=3) == "█▁▅"
    assert curve({1: 2.0, 2: 2.0}, columns=4) == "▁▁  "
    assert curve({step: float(step) for step in range(100)}, columns=8) == "▁▂▃▄▅▆▇█"
    assert curve({1: float("nan")}, columns=2) == "  "


def test_a_follower_of_no_file_waits_for_it(tmp_path):
    follower = Follower(tmp_path / "late.jsonl")
    assert follower.new() == (False, [])
    append(tmp_path / "late.jsonl", {"a": 1})
    assert follower.new() == (True, [{"a": 1}])


def test_the_command_prints_one_frame_or_one_sentence(run, capsys):
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "live.py"), f"--workdir={run}", "--once"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "step 310 of 1,000" in done.stdout and "\x1b" not in done.stdout
    for arguments, words in (
        ([f"--workdir={run.parent}"], "found no run in"),
        ([], "required: --workdir"),
        ([f"--workdir={run}", "--every_s=0"], "--every_s: found 0"),
    ):
        assert command.main(["launch/live.py", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    with pytest.raises(ConfigError, match="found no run"):
        RunFiles(run.parent)


def test_it_refreshes_until_it_is_interrupted(run):
    """Frame over frame, each from the top left corner; Ctrl-C ends it without a word."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch" / "live.py"), f"--workdir={run}", "--every_s=0.1"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # shells' jobs behind an & ignore it, and so do theirs
    )
    try:
        seen = ""
        while seen.count("\x1b[H") < 2:
            seen += process.stdout.readline()
        append(run / "metrics.jsonl", record(500))
        while "step 500 of 1,000" not in seen:
            seen += process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
