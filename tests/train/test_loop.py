"""The loop: its order, resume to the bit, signals, what may change on resume, and the files it leaves."""

import dataclasses
import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest
from train_case import BLOCKS, CONFIG, TASK_NAMES, Batches

from ofa_jax.checkpoint import manager as managing
from ofa_jax.checkpoint.about import About
from ofa_jax.checkpoint.digests import write_digests
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import CheckpointError, ConfigError
from ofa_jax.config.load import run_folder
from ofa_jax.config.schema import CheckpointConfig
from ofa_jax.data.mixture import Members
from ofa_jax.data.usage import Usage
from ofa_jax.train.hooks import Evaluate, Hook, ProgressLine, WriteMetrics, duration
from ofa_jax.train.loop import train
from ofa_jax.train.resume import check_resume
from ofa_jax.train.speed import WatchSpeed
from ofa_jax.train.watch import WatchData

pytestmark = pytest.mark.usefixtures("compiled_programs")
# Pictures, sampled patches, dropout and running statistics all take part in what a resumed run must repeat.
ONE_BLOCK = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[:1]), checkpoint=CheckpointConfig(100, 0.0, 2))


class Events(Hook):
    """Writes down what the loop does, and sends signals at a step."""

    def __init__(self, *, kill_at=None):
        self.events, self.records, self.kill_at = [], [], kill_at

    def start(self, step):
        self.events.append(("start", step))

    def evaluate(self, step, state, *, last):
        self.events.append(("evaluate", step))
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"eval/vqa": 0.5} if last else None

    def batch(self, batch):
        self.events.append(("batch", batch.data_step))

    def log(self, record):
        self.events.append(("log", record["step"]))
        self.records.append(dict(record))

    def close(self):
        self.events.append(("close",))


def run(config, hooks=(), **options):
    return train(config, Batches(config), list(hooks), task_names=TASK_NAMES, devices=jax.devices()[:1], **options)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, compiled_programs):
    """Four steps in one go, with all that was seen."""
    config = dataclasses.replace(ONE_BLOCK, workdir=str(tmp_path_factory.mktemp("straight") / "{name}"))
    events = Events()
    workdir = run_folder(config)
    watch = WatchData(config, Usage(config.data, [[Members(16)]]), task_names=TASK_NAMES)
    speed = WatchSpeed(config, devices=jax.devices()[:1])
    result = run(config, [events, WriteMetrics(workdir), ProgressLine(steps=4), watch, speed])
    return config, result, events


def test_the_order_is_evaluate_save_batch_step_log(straight):
    _, result, events = straight
    assert (result.step, result.stopped) == (4, False)
    assert (int(result.state.step), int(result.state.data_step)) == (4, 4)
    # Numbers are read one step late: step 1 is logged once step 2 was started.
    assert events.events == [
        ("start", 0), ("evaluate", 0), ("batch", 0), ("evaluate", 1), ("batch", 1), ("log", 1), ("evaluate", 2), ("batch", 2), ("log", 2),
        ("evaluate", 3), ("batch", 3), ("log", 3), ("log", 4), ("evaluate", 4), ("log", 4), ("close",),
    ]  # fmt: skip


def test_records_and_files(straight):
    config, _, events = straight
    first, workdir = events.records[0], run_folder(config)
    assert (first["step"], first["data_step"]) == (1, 0)
    assert {"loss/total", "loss/pairs", "loss/nll/captioning", "loss/nll/matching", "optimizer/grad_norm", "perf/examples_per_s"} <= set(
        first
    )
    assert "loss/nll/text_infilling" not in first
    parts = {name.rsplit("/")[-1] for name in first if name.startswith("optimizer/grad_norm/")}
    assert parts == {"embedding", "resnet", "encoder", "decoder"}
    assert {"perf/useful_tokens_per_s", "perf/flops_per_s", "memory/host_peak_bytes"} <= set(events.records[1])
    assert events.records[1]["data/rejects/d"] == 1
    assert "data/rejects/d" not in first
    assert events.records[-1]["eval/vqa"] == 0.5
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    # What the watch says of the step's own batch, though the next one has come already.
    assert [(line["data/epochs/d/caption"], line["data/accept/d"]) for line in lines[:4]] == [(0.5, 1), (1, 8 / 9), (1.5, 1), (2, 1)]
    assert list((workdir / "tensorboard").glob("events*"))
    assert json.loads((workdir / "config.json").read_text())["steps"] == 4


def test_a_signal_saves_and_the_same_command_goes_on_to_the_bit(straight, tmp_path, capsys):
    _, expected, _ = straight
    config = dataclasses.replace(ONE_BLOCK, workdir=str(tmp_path / "{name}"))
    workdir, before = run_folder(config), signal.getsignal(signal.SIGTERM)
    first = run(config, [Events(kill_at=1), WriteMetrics(workdir)])
    assert (first.step, first.stopped) == (2, True)  # the step under way is finished
    assert signal.getsignal(signal.SIGTERM) is before
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss/total": 1.0}\n{"step": 4, "lo')
    resumed = Events()
    second = run(config, [resumed, WriteMetrics(workdir)])
    assert resumed.events[:3] == [("start", 2), ("evaluate", 2), ("batch", 2)]
    assert (second.step, second.stopped) == (4, False)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(expected.state)[0], jax.tree.leaves(second.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))
    assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 4]
    printed = capsys.readouterr().out
    assert "stopped by a signal at step 2 and saved" in printed
    assert "going on from step 2" in printed
    third = Events()  # a finished run does nothing more
    assert run(config, [third]).step == 4
    assert ("batch", 4) not in third.events


def test_another_run_in_the_same_folder_is_refused(straight):
    config, _, _ = straight
    with pytest.raises(CheckpointError, match=r"another run than checkpoint .*/checkpoints/4: seed: 1 -> 2; .*--allow=seed"):
        run(dataclasses.replace(config, seed=2))


def verdict(config, *, step=2, stored=CONFIG, allow=(), about=None, **identity):
    about = about or About(stored, {"tokenizer": "a", "data/d": "1"})
    return check_resume(about, config, step=step, where="checkpoint c", identity={"tokenizer": "a", "data/d": "1"} | identity, allow=allow)


def test_what_may_change_on_resume():
    assert verdict(CONFIG).said == ()
    said = verdict(dataclasses.replace(CONFIG, steps=400, log_every=7, workdir="elsewhere", checkpoint=CheckpointConfig(5, 5, 5))).said
    assert "changed, free: steps: 4 -> 400" in said and "changed, free: checkpoint.keep: 3 -> 5" in said
    verdict(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, remat="full", layers="scan")))
    with pytest.raises(CheckpointError, match="steps: found 4, expected at least 9"):
        verdict(CONFIG, step=9)


def test_everything_that_makes_another_run_is_shown_with_the_flag_that_allows_it():
    rate = dataclasses.replace(CONFIG.optimizer, learning_rate=1.0)
    changed = dataclasses.replace(CONFIG, optimizer=rate, log_every=9, seed=3, data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[:2]))
    with pytest.raises(CheckpointError) as error:
        verdict(changed, tokenizer="b", **{"data/d": "2"})
    sentence = str(error.value)
    for part in ("seed: 1 -> 3", "optimizer.learning_rate: 0.003 -> 1.0", "data.blocks.text.rows: 8 -> (none)", "tokenizer: a -> b",
                 "data/d: 1 -> 2", "(free: log_every: 1 -> 9)"):  # fmt: skip
        assert part in sentence
    flag = sentence.split("--allow=")[1].split()[0]
    assert set(flag.split(",")) == {"seed", "optimizer.learning_rate", "data.blocks", "tokenizer", "data"}
    with pytest.raises(CheckpointError, match="seed: 1 -> 3"):
        verdict(changed, allow=["optimizer", "data", "tokenizer"], tokenizer="b", **{"data/d": "2"})
    found = verdict(changed, allow=flag.split(","), tokenizer="b", **{"data/d": "2"})
    assert "changed, allowed: seed: 1 -> 3" in found.said
    (consent,) = found.consents
    assert consent["step"] == 2 and "data/d: 1 -> 2" in consent["changes"] and "log_every: 1 -> 9" not in consent["changes"]
    # Consents are of one resume: what the checkpoint says stays, what changes later has to be allowed again.
    later = verdict(CONFIG, about=About(CONFIG, {"tokenizer": "a", "data/d": "1"}, consents=found.consents), allow=["seed"])
    assert later.consents == found.consents and later.said == ("--allow=seed: nothing of it changed",)


def test_another_objective_cannot_be_allowed():
    with pytest.raises(CheckpointError, match="is of another model"):
        verdict(dataclasses.replace(CONFIG, objective="picture_words"), allow=["objective"])


def test_a_checkpoint_that_does_not_say_its_data_goes_on_and_says_so():
    about = About(CONFIG, {"tokenizer": "a"}, format=1, unsaid=("digests of the data",))
    assert "does not say: digests of the data" in verdict(CONFIG, about=about).said[0]
    with pytest.raises(CheckpointError, match=r"data/d: \(none\) -> 1"):
        verdict(CONFIG, about=About(CONFIG, {"tokenizer": "a"}))


def test_checkpoints_by_steps_are_kept_and_a_cut_off_one_is_told(straight, tmp_path, capsys):
    config = dataclasses.replace(ONE_BLOCK, workdir=str(tmp_path / "{name}"), checkpoint=CheckpointConfig(1, 0.0, 2))
    (run_folder(config) / "checkpoints" / "9.orbax-checkpoint-tmp-1").mkdir(parents=True)
    run(config)
    assert CheckpointManager(run_folder(config), read_only=True).steps() == [3, 4]
    assert "9.orbax-checkpoint-tmp-1 was cut off while it was written; ignored and deleted" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_moved_aside_and_the_run_goes_on_to_the_bit(straight, tmp_path, capsys):
    _, expected, _ = straight
    config = dataclasses.replace(ONE_BLOCK, workdir=str(tmp_path / "{name}"), checkpoint=CheckpointConfig(1, 0.0, 4))
    folder = run_folder(config) / "checkpoints"
    run(config)
    arrays = max((folder / "4" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)
    (folder / "3" / "commit_success.txt").unlink()
    again = Events()
    result = run(config, [again])
    assert again.events[0] == ("start", 2)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(expected.state)[0], jax.tree.leaves(result.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3", "3.damaged", "4", "4.damaged"]
    printed = capsys.readouterr().out
    assert "its bytes changed after it was saved); moved aside as 4.damaged, the one before is used" in printed
    assert "its marker of completion is missing); moved aside as 3.damaged" in printed
    events = [json.loads(line) for line in (run_folder(config) / "checkpoints.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in events][4:6] == [("damaged", 3), ("damaged", 4)]
    assert events[5]["moved_to"] == "4.damaged"
    for step in (1, 2, 3, 4):  # nothing whole is left: a new start would be no resume
        (folder / str(step) / "commit_success.txt").unlink()
    with pytest.raises(CheckpointError, match="found no whole checkpoint, only damaged ones"):
        run(config)


def wait_for_save(step):
    deadline = time.monotonic() + 60
    while any(thread.name == f"save {step}" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_save_that_failed_stops_the_run_at_the_next_step(straight, tmp_path, monkeypatch):
    def full(folder, about):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(managing, "write_digests", full)
    config = dataclasses.replace(ONE_BLOCK, workdir=str(tmp_path / "{name}"), steps=400, checkpoint=CheckpointConfig(2, 0.0, 4))

    class WaitForTheSave(Hook):
        def batch(self, batch):
            wait_for_save(2)

    events = Events()
    with pytest.raises(CheckpointError, match="checkpoint of step 2 could not be written: .*No space left on device"):
        run(config, [events, WaitForTheSave()])
    assert [event for event in events.events if event[0] == "batch"] == [("batch", 0), ("batch", 1), ("batch", 2)]


@pytest.mark.full
def test_training_goes_on_during_a_save_whose_times_are_logged(straight, tmp_path, monkeypatch):
    """The save of step 3 is held until the batch of step 5 is taken: step 4 is made while it is under way."""
    release, done = threading.Event(), []

    def slow(folder, about):
        if folder.name.startswith("3."):
            assert release.wait(60)
            done.append(events.records[-1]["step"])
        write_digests(folder, about)

    class Release(Events):
        def batch(self, batch):
            super().batch(batch)
            if batch.data_step == 4:
                release.set()
                wait_for_save(3)

    monkeypatch.setattr(managing, "write_digests", slow)
    events = Release()
    config = dataclasses.replace(ONE_BLOCK, workdir=str(tmp_path / "{name}"), steps=6, checkpoint=CheckpointConfig(3, 0.0, 4))
    run(config, [events])
    assert done == [3]  # numbers are read a step late: step 4 was on the device
    (record,) = (record for record in events.records if "checkpoint/save_s" in record)
    assert record["step"] in (4, 5) and 0 < record["checkpoint/blocked_s"] < record["checkpoint/save_s"]
    saved = [json.loads(line) for line in (run_folder(config) / "checkpoints.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in saved] == [("saved", 3), ("saved", 6)]
    assert all(0 < event["blocked_s"] <= event["save_s"] for event in saved)


@pytest.mark.full
def test_a_consent_is_kept_in_later_checkpoints(straight, tmp_path):
    config = dataclasses.replace(ONE_BLOCK, workdir=str(tmp_path / "{name}"), steps=1)
    run(config, identity={"data/d": "1"})
    faster = dataclasses.replace(config, steps=2, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.1))
    with pytest.raises(CheckpointError, match=r"data/d: 1 -> 2.*--allow=optimizer\.learning_rate,data"):
        run(faster, identity={"data/d": "2"})
    run(faster, identity={"data/d": "2"}, allow=["optimizer.learning_rate", "data"])
    about = CheckpointManager(run_folder(config), read_only=True).about(2)
    assert about.consents == ({"step": 1, "changes": ["optimizer.learning_rate: 0.003 -> 0.1", "data/d: 1 -> 2"]},)
    run(dataclasses.replace(faster, steps=3), identity={"data/d": "2"})  # it is this run now
    assert CheckpointManager(run_folder(config), read_only=True).about(3).consents == about.consents


@pytest.mark.full
def test_an_average_begins_with_the_parameters_where_it_is_allowed_to(straight, tmp_path, capsys):
    plain = dataclasses.replace(ONE_BLOCK.optimizer, ema_decay=0.0)
    config = dataclasses.replace(ONE_BLOCK, workdir=str(tmp_path / "{name}"), steps=1, optimizer=plain)
    run(config)
    averaged = dataclasses.replace(config, steps=2, optimizer=ONE_BLOCK.optimizer)
    result = run(averaged, allow=["optimizer.ema_decay"])
    assert "lacks a part of the state, filled in: ema with the parameters as they are" in capsys.readouterr().out
    assert result.state.ema is not None
    assert run(dataclasses.replace(config, steps=3), allow=["optimizer.ema_decay"]).state.ema is None


@pytest.mark.full
def test_the_best_checkpoint_stays(straight, tmp_path):
    plan = CheckpointConfig(1, 0.0, 1, keep_best=1, best_metric="eval/accuracy/a")
    config = dataclasses.replace(ONE_BLOCK, workdir=str(tmp_path / "{name}"), checkpoint=plan)
    scores = iter([0.1, 0.7, 0.2, 0.3, 0.3])
    run(config, [Evaluate(lambda state: {"eval/accuracy/a": next(scores)}, every_steps=1)])
    manager = CheckpointManager(run_folder(config), read_only=True)
    assert (manager.steps(), manager.about(2).metrics) == ([2, 4], {"eval/accuracy/a": 0.7})
    other = dataclasses.replace(config, checkpoint=dataclasses.replace(plan, best_metric="eval/acuracy/a"))
    with pytest.raises(ConfigError, match="best_metric: found eval/acuracy/a, .*did you mean eval/accuracy/a?"):
        run(dataclasses.replace(other, steps=6), [Evaluate(lambda state: {"eval/accuracy/a": 0.1}, every_steps=1)])


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.7, "1m00s"), (725, "12m05s"), (3725, "1h02m")])
def test_durations(seconds, text):
    assert duration(seconds) == text
