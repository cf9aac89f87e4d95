"""A step is predicted where operations and peak are known, and the pipeline's rate is held against it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from configs.ofa_large import get_config as large
from configs.quickstart_front import get_config as front
from configs.quickstart_vqgan import get_config as vqgan
from ofa_jax.config.hardware import load_hardware
from ofa_jax.doctor.pace import Rate, Step, check_pace, measure, predict_step
from ofa_jax.models.operations import step_operations
from ofa_jax.prepare import fixtures
from tests.e2e.small_run import get_config


def predicted(config, chip, *, step_s: float = 0.0) -> Step:
    return predict_step(config, chip, kind="cpu", num_devices=256, mfu=0.4, step_s=step_s)


def test_a_step_is_operations_over_peak_and_mfu():
    found = predicted(large(), load_hardware("v5e"))
    assert found.seconds == pytest.approx(sum(step_operations(large()).values()) / (256 * 197e12 * 0.4))
    assert "on 256 x TPU v5e (197 TFLOP/s) at MFU 0.4" in found.said
    assert predicted(large(), None, step_s=2.0).seconds == 2.0


def test_what_is_not_known_is_not_made_up():
    for config, chip in (
        (large(), None),
        (dataclasses.replace(large(), precision="f32"), load_hardware("h100")),
        (front(), load_hardware("v4")),
        (vqgan(), load_hardware("v4")),
    ):
        found = predicted(config, chip)
        assert found.seconds is None and "not known" in found.said and "--step_s" in found.said


def test_the_rate_is_judged_with_a_fifth_to_spare():
    rate, rows = Rate(1_000.0, 50, 32, 1.0, 0), 3_072
    config = dataclasses.replace(large(), data=dataclasses.replace(large().data, num_workers=0))

    def judged(step_s: float | None, **more):
        asked = {"num_hosts": 2, "here": True, "read_mb_s": 100.0, "step_bytes": 1e6} | more
        [found] = check_pace(config, rate, Step(step_s, "known"), **asked)
        return found

    assert [judged(rows / 2 / needed).status for needed in (1_001.0, 900.0, 500.0)] == ["FAIL", "WARN", "ok"]
    slow = judged(rows / 2 / 500.0, step_bytes=1e9)
    assert slow.status == "FAIL" and "expected no more than the 100 MB/s of data.dir" in slow.text
    assert judged(None).status == "ok"
    assert "as many as 4 such hosts make" in judged(rows / 3_000.0, here=False).text
    crowded = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=100_000))
    found = check_pace(crowded, rate, Step(None, "unknown"), num_hosts=1, here=True, read_mb_s=None, step_bytes=None)
    assert [one.status for one in found] == ["WARN", "ok"] and "data.num_workers=100000" in found[0].text


def test_the_real_pipeline_is_measured_in_slices(tmp_path: Path):
    data = fixtures.write(tmp_path / "data")
    config = get_config()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, dir=str(data), blocks=tuple(dataclasses.replace(block, rows=64) for block in config.data.blocks)
        ),
        vocab=dataclasses.replace(config.vocab, path=str(data / "tokenizer.model")),
    )
    found = measure(config, host=1, num_hosts=2, seconds=0.5)
    assert found.batch_rows == 32  # a host's half of 128 rows, in two
    assert found.batches > 0 and found.rows_s > 10
