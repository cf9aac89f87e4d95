"""What the first host reports: a band to compare with, W&B where it is asked for, and the metric that keeps checkpoints."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest
from train_case import BLOCKS, CONFIG, TASK_NAMES, Batches

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import run_folder
from ofa_jax.config.schema import CheckpointConfig, MonitorConfig
from ofa_jax.data.mixture import Members
from ofa_jax.data.usage import Usage
from ofa_jax.monitor.reference import Band, make_band, read_records
from ofa_jax.train.hooks import Evaluate, progress_text
from ofa_jax.train.loop import train
from ofa_jax.train.reporting import CompareToReference, reporting_hooks
from ofa_jax.train.saving import Saving

TEXT = dataclasses.replace(
    CONFIG, data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[2:]), checkpoint=CheckpointConfig(100, 0.0, 2), steps=6
)


def run(config):
    workdir = run_folder(config)
    hooks = reporting_hooks(config, workdir, Usage(config.data, [[Members(1000)]]), task_names=TASK_NAMES, num_hosts=1)
    hooks.append(Evaluate(lambda state: {"held_out/loss": 1.0, "held_out/nll/text_infilling": 0.5}, every_steps=0))
    train(config, Batches(config), hooks, task_names=TASK_NAMES, devices=jax.devices()[:1])
    return read_records(workdir)


@pytest.mark.full
@pytest.mark.usefixtures("compiled_programs")
def test_a_run_says_where_it_is_in_the_band_of_another(tmp_path, capsys):
    first = run(dataclasses.replace(TEXT, workdir=str(tmp_path / "first")))
    assert not [name for record in first for name in record if name.startswith("reference/")]
    assert "held out: text_infilling 0.500" in capsys.readouterr().out
    band = make_band([first], tolerance=0.001)
    band["curves"]["loss/total"] = [[step, 1.01 * low, 1.01 * high] for step, low, high in band["curves"]["loss/total"]]
    (tmp_path / "band.json").write_text(json.dumps(band))
    monitor = MonitorConfig(reference=str(tmp_path / "band.json"))
    second = run(dataclasses.replace(TEXT, workdir=str(tmp_path / "second"), monitor=monitor))
    assert [record["loss/total"] for record in second[:6]] == [record["loss/total"] for record in first[:6]]
    assert second[0]["reference/loss/total"] < 0 and second[-1]["reference/held_out/nll/text_infilling"] == 0
    assert "% ahead of the band)" in capsys.readouterr().out


def test_a_line_says_where_the_loss_is_in_the_band():
    numbers = {"step": 5, "loss/total": 2.0, "time/left_s": 9.0, "perf/examples_per_s": 3.0, "perf/mfu": 0.4}
    band = Band({"loss/total": (np.array([0.0, 10.0]), np.array([1.0, 1.0]), np.array([1.5, 1.7]))})
    record = numbers | CompareToReference(band).derive(numbers)
    assert progress_text(record, steps=9) == "step 5/9  loss 2.0000 (25.0 % behind the band)  []  3.0 examples/s  MFU 40.0 %  9s left"


def test_what_is_asked_for_and_missing_is_one_sentence(tmp_path):
    usage = Usage(CONFIG.data, [[Members(16)], [Members(20)], [Members(1000)]])

    def hooks(**monitor):
        config = dataclasses.replace(CONFIG, monitor=MonitorConfig(**monitor))
        return reporting_hooks(config, tmp_path, usage, task_names=TASK_NAMES, num_hosts=1)

    with pytest.raises(ConfigError, match=r"reference band .*nowhere.json: cannot be read"):
        hooks(reference=str(tmp_path / "nowhere.json"))
    assert importlib.util.find_spec("wandb") is None, "the package is no dependency, and this environment has none"
    with pytest.raises(ConfigError, match=r"found mine, but .* wandb cannot be imported \(No module .*; expected `pip install wandb`"):
        hooks(wandb="mine")


def test_numbers_of_both_evaluations_of_a_step_are_kept_and_the_best_is_looked_for_in_its_own(tmp_path):
    def saving(metric):
        config = dataclasses.replace(CONFIG, checkpoint=CheckpointConfig(1, 0.0, 1, keep_best=1, best_metric=metric))
        return Saving(config, None, None, identity={}, consents=())  # nothing is saved here

    both = saving("held_out/nll/vqa")
    both.evaluated(1, {"eval/vqa/a": 0.5})
    both.evaluated(1, {"held_out/nll/vqa": 1.5})
    assert both._evaluated == (1, {"eval/vqa/a": 0.5, "held_out/nll/vqa": 1.5})
    both.evaluated(2, {"held_out/nll/vqa": 1.25})
    assert both._evaluated == (2, {"held_out/nll/vqa": 1.25})
    for metric, numbers in (("held_out/nll/vaq", {"held_out/nll/vqa": 1.0}), ("loss/total", {"eval/vqa/a": 1.0})):
        with pytest.raises(ConfigError, match=f"best_metric: found {metric}, which is no number of the evaluation"):
            saving(metric).evaluated(1, numbers)
