"""The two works that training is measured on, and the command that measures them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ofa_jax.bench.protocols import pretraining_step, same_work
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import read_config
from ofa_jax.models.operations import sequences_a_row

ROOT = Path(__file__).resolve().parents[2]
WORK = {"rows": 96, "source_len": 80, "target_len": 30, "image_px": 384, "num_patches": 196}


def run():
    return read_config(str(ROOT / "configs" / "ofa_large.py"))


def test_same_work_is_one_block_with_a_picture_a_sequence():
    config = same_work(run(), **WORK)
    [block] = config.data.row_blocks
    assert (block.stream, block.rows, sequences_a_row(block), block.num_patches) == ("images", 96, 1, 196)
    [block] = same_work(run(), **{**WORK, "image_px": 0}).data.row_blocks
    assert (block.stream, block.image_px, block.num_patches) == ("text", 0, 0)
    assert config.optimizer == run().optimizer and config.model == run().model


def test_a_pretraining_step_has_all_streams_and_lengths_at_a_part_of_the_batch():
    whole, part = run().data.row_blocks, pretraining_step(run(), parts=32).data.row_blocks
    assert {block.name.split("_")[0] for block in part} == {block.name.split("_")[0] for block in whole}
    assert sum(block.rows for block in part) == 96
    assert sum(block.rows * sequences_a_row(block) for block in part) == 160  # two of every pair's picture
    with pytest.raises(ConfigError, match=r"--parts: found 7, expected a divisor of the 2048 rows of block pairs"):
        pretraining_step(run(), parts=7)


@pytest.mark.full
def test_a_step_is_timed_with_its_operations_and_peak(tmp_path: Path):
    command = [sys.executable, str(ROOT / "launch" / "bench.py"), "train", "--size=tiny", "--text-only", "--precision=f32", "--rows=8"]
    file = tmp_path / "found.json"
    more = ["--source-len=16", "--target-len=8", "--steps=2", "--layers=scan", f"--json={file}"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["ofa_jax"]
    assert found["sequences"] == 8 and found["positions"] == 8 * 24 and len(found["step_s"]) == 2
    assert found["flops"] == pytest.approx(sum(found["operations"].values()) / found["median_s"] / found["devices"])
    assert found["of_matmul"] == pytest.approx(found["flops"] / found["matmul_flops"]) and "mfu" not in found
    assert "sequences/s" in done.stdout and "measured on a product" in done.stdout


def test_a_size_that_is_not_there_is_named_with_those_that_are():
    command = [sys.executable, str(ROOT / "launch" / "bench.py"), "train", "--size=giant"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "--size: found giant, expected one of base, huge, large, medium, tiny" in done.stderr


def test_a_mistake_is_one_sentence():
    command = [sys.executable, str(ROOT / "launch" / "bench.py"), "train", "--protocol=pretraining", "--parts=7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.strip().endswith("of block pairs") and "Traceback" not in done.stderr
