"""Speed: MFU by hand for one size, tokens a second, what a CPU says; the time that a step waits for data."""

import time

import jax
import pytest
from train_case import CONFIG

from configs.ofa_base import get_config
from ofa_jax.config.hardware import load_hardware
from ofa_jax.models.operations import step_operations
from ofa_jax.monitor import flops
from ofa_jax.train.hooks import TimeByCause
from ofa_jax.train.speed import WatchSpeed

RECORD = {"time/step_ms": 500.0, "data/tokens/vqa": 30.0, "data/tokens/captioning": 20.0, "data/useful_tokens": 0.9}


def test_a_cpu_has_rates_and_memory_but_no_mfu():
    said = []
    watch = WatchSpeed(CONFIG, say=said.append)
    watch.start(0)
    found = watch.derive(RECORD)
    assert found["perf/useful_tokens_per_s"] == 100
    assert found["perf/flops_per_s"] == pytest.approx(2 * sum(step_operations(CONFIG).values()))
    assert found["memory/host_peak_bytes"] > 1e7
    assert not [name for name in found if "mfu" in name or "device" in name]
    [line] = said
    assert "the peak of cpu is not known: perf/flops_per_s, no MFU" in line and "encoder" in line
    assert set(watch.derive({"time/step_ms": 0.0})) == {"memory/host_peak_bytes"}


def test_mfu_of_base_on_eight_chips_by_hand():
    """A quarter of a second a step: the parts add up, and doubling the time halves them."""
    operations, peak = step_operations(get_config()), 8 * load_hardware("v5p").bf16_flops
    found = flops.rates(operations, step_s=10.0, peak_flops=peak)
    assert found["perf/mfu"] == pytest.approx(sum(operations.values()) / (10.0 * 8 * 459e12))
    parts = {name.removeprefix("perf/mfu/"): value for name, value in found.items() if name.startswith("perf/mfu/")}
    assert set(parts) == {"resnet", "encoder", "decoder", "logits"}
    assert sum(parts.values()) == pytest.approx(found["perf/mfu"])
    assert flops.rates(operations, step_s=20.0, peak_flops=peak)["perf/mfu"] == pytest.approx(found["perf/mfu"] / 2)
    assert "8 x 459 TFLOP/s, the bf16 peak of TPU v5p" in flops.explain(operations, kind="TPU v5p", num_chips=8, peak_flops=459e12)


def test_a_picture_namers_operations_are_the_front_and_its_head():
    from configs.quickstart_front import get_config as front

    operations = step_operations(front())
    assert set(operations) == {"resnet", "head"}
    assert WatchSpeed(front(), devices=jax.devices()[:1]).derive(RECORD)["perf/flops_per_s"] == 2 * sum(operations.values())


def test_the_wait_for_data_is_a_mean_over_the_steps_of_the_interval():
    causes = TimeByCause()
    for wait_s in (0.05, 0.15):
        causes.phase(0, "data")
        time.sleep(wait_s)
        causes.phase(0, "step")
    first = causes.numbers(1)
    assert 100 <= first["time/data_wait_ms"] < 400
    causes.phase(0, "data")
    causes.phase(0, "step")
    assert causes.numbers(2)["time/data_wait_ms"] < 90  # of its own interval
    assert causes.numbers(3)["goodput/data_s"] >= 0.2
