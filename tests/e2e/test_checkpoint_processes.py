"""A checkpoint goes from one device to eight, to two processes and back, bit for bit; two processes fall back to the same step."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_program import CONFIG, abstract, placed, spread, values
from processes import run_together

from ofa_jax.checkpoint.manager import CheckpointManager

PROGRAM = str(Path(__file__).with_name("checkpoint_program.py"))


def together(workdir, step):
    results = run_together([sys.executable, PROGRAM, str(workdir), str(step)], workdir, count=2)
    assert [code for code, _ in results] == [0, 0], results
    return [[line for line in output.splitlines() if line.startswith(("damaged", "restored", "saved"))] for _, output in results]


def assert_saved(manager, step, devices):
    state = manager.restore(abstract(spread(devices)), step=step)
    jax.tree.map(lambda leaf, expected: np.testing.assert_array_equal(np.asarray(leaf), expected), state, values())
    return state


@pytest.mark.full
def test_one_device_eight_devices_two_processes_and_back(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save(1, placed(spread(jax.devices()[:1])), config=CONFIG)
    manager.wait()
    manager.save(2, assert_saved(manager, 1, jax.devices()), config=CONFIG)
    manager.close()
    assert together(tmp_path, 3) == [["restored 2, 1 of 2 devices", "saved [1, 2, 3]"]] * 2
    reader = CheckpointManager(tmp_path, read_only=True)
    assert reader.damage(3) == ""
    for devices in (jax.devices()[:1], jax.devices()):
        assert_saved(reader, 3, devices)
    # One process reads every second file: the damage that it finds is the other's too, and both take the step before.
    arrays = max((tmp_path / "checkpoints" / "3" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 2
    arrays.write_bytes(content)
    assert together(tmp_path, 4) == [["damaged 3 3.damaged", "restored 2, 1 of 2 devices", "saved [1, 2, 4]"]] * 2
    assert_saved(CheckpointManager(tmp_path, read_only=True), 4, jax.devices())
