"""Traces on demand of real runs: at a step, by a signal, by a file; whole steps, and nothing when nobody asks."""

import dataclasses
import os
import signal

import jax
import pytest
from train_case import BLOCKS, CONFIG, TASK_NAMES, Batches

from launch import traces as command
from ofa_jax.config.load import run_folder
from ofa_jax.config.schema import CheckpointConfig
from ofa_jax.monitor.traces import operations, read_events, trace_files
from ofa_jax.train import tracing
from ofa_jax.train.hooks import Hook
from ofa_jax.train.loop import train
from ofa_jax.train.tracing import ASKED, STEPS, TraceOnDemand

pytestmark = pytest.mark.usefixtures("compiled_programs")
TEXT = dataclasses.replace(
    CONFIG, data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[2:]), checkpoint=CheckpointConfig(100, 0.0, 2), steps=8
)


class At(Hook):
    """Does something where the loop turns to the batch behind so many steps."""

    def __init__(self, step, action):
        self._step, self._action = step, action

    def phase(self, step, name):
        if (step, name) == (self._step, "data"):
            self._action()


def traced(folder, *, at=None, at_step=0, steps=8):
    config = dataclasses.replace(TEXT, workdir=str(folder), steps=steps)
    workdir, said = run_folder(config), []
    trace = TraceOnDemand(workdir, at_step=at_step, say=said.append)
    hooks = [At(2, lambda: at(workdir)), trace] if at else [trace]
    result = train(config, Batches(config), hooks, task_names=TASK_NAMES, devices=jax.devices()[:1])
    return workdir, said, result


def runs_of(folder):
    """How often the training step ran, by a trace: the most frequent number of runs of an operation outside of loops."""
    [path] = trace_files(folder)
    ids = {event["args"].get("run_id") for event in read_events(path) if event.get("args", {}).get("hlo_module") == "jit_step"}
    return len(ids)


@pytest.mark.full
def test_a_trace_at_a_step_has_whole_steps_and_changes_nothing(tmp_path, capsys):
    workdir, said, result = traced(tmp_path / "traced", at_step=3)
    [folder] = (workdir / "traces").iterdir()
    assert folder.name == "step_3" and said == [f"trace: {folder}; `python launch/traces.py {folder}` says what the time went into"]
    assert STEPS <= runs_of(folder) <= STEPS + 2  # those at the edges may be cut
    plain, nothing, expected = traced(tmp_path / "plain")
    assert not (plain / "traces").exists() and nothing == []
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("another state"), result.state.params, expected.state.params)
    assert command.main(["launch/traces.py", str(folder), "--top=3"]) == 0
    printed = capsys.readouterr().out
    assert "ms of operations on all threads of the device" in printed and "others:" in printed and "ui.perfetto.dev" in printed


@pytest.mark.full
def test_a_signal_asks_for_one_and_the_handler_goes_with_the_run(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    workdir, said, _ = traced(tmp_path / "run", at=lambda workdir: os.kill(os.getpid(), signal.SIGUSR1))
    assert [path.name for path in (workdir / "traces").iterdir()] == ["step_2"] and len(said) == 1
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.full
def test_a_file_asks_for_one_which_the_end_of_the_run_cuts(tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "_LOOK_EVERY_S", 0.0)  # these steps are quicker
    workdir, said, _ = traced(tmp_path / "run", at=lambda workdir: (workdir / ASKED).touch(), steps=4)
    assert not (workdir / ASKED).exists()
    assert [path.name for path in (workdir / "traces").iterdir()] == ["step_2"] and len(said) == 1


def event(tid, begin, length, name):
    return {"ph": "X", "pid": 1, "tid": tid, "ts": begin, "dur": length, "name": name, "args": {"hlo_op": name}}


def test_an_operations_own_time_is_without_what_runs_inside():
    events = [
        event(1, 0.0, 10_000.0, "while.1"), event(1, 1_000.0, 3_000.0, "dot.7"), event(1, 5_000.0, 4_000.0, "dot.8.1"),
        event(1, 6_000.0, 1_000.0, "copy"), event(2, 0.0, 2_000.0, "dot"),
        {"ph": "X", "pid": 1, "tid": 1, "ts": 0.0, "dur": 9e9, "name": "python"},
    ]  # fmt: skip
    assert [(o.name, o.count, o.own_ms) for o in operations(events)] == [("dot", 3, 8.0), ("while", 1, 3.0), ("copy", 1, 1.0)]


def test_what_is_no_trace_is_one_sentence(tmp_path, capsys):
    (tmp_path / "perfetto_trace.json.gz").write_bytes(b"\x1f\x8b\x08")
    for arguments, words in (
        ([str(tmp_path / "nowhere")], "found no perfetto_trace.json.gz in"),
        ([str(tmp_path)], "found no whole trace"),
        ([], "required: folder"),
    ):
        assert command.main(["launch/traces.py", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
