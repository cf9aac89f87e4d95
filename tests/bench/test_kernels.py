"""The parts of a step, timed one by one, and what they take at least."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ofa_jax.bench.kernels import Kernel, gradients
from ofa_jax.models.floors import Floor

ROOT = Path(__file__).resolve().parents[2]


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "launch" / "bench.py"), *flags], capture_output=True, text=True, timeout=900)


@pytest.mark.full
@pytest.mark.parametrize(
    "flags", [("--image-px=64", "--num-patches=10"), ("--image-px=64", "--num-patches=0"), ("--image-px=0", "--num-patches=0")]
)
def test_all_parts_are_timed_beside_their_floors(flags: tuple[str, ...], tmp_path: Path):
    file = tmp_path / "found.json"
    work = ("--size=tiny", "--precision=f32", "--rows=2", "--source-len=8", "--target-len=4", "--repeats=2", f"--json={file}")
    done = bench("kernels", *work, *flags)
    assert done.returncode == 0, done.stderr
    found = {one["name"]: one for one in json.loads(file.read_text())["kernels"]}
    pictures = ["resnet"] if flags[0] != "--image-px=0" else []
    layers = ["encoder layer, reference", "decoder layer, reference"]
    assert list(found) == [*pictures, *layers, "logits and loss", "optimizer, all parameters", "layer norm", "dropout"]
    assert all(found[name]["floor"]["operations"] > 0 for name in [*pictures, *layers, "logits and loss"])
    assert all(one["floor"]["num_bytes"] > 0 for one in found.values())
    assert len(done.stdout.splitlines()) == len(found) + 2


def test_a_gradient_is_taken_with_the_result_as_its_own():
    out, grad = gradients(lambda x, scale: scale * jnp.square(x), jnp.arange(3.0), jnp.float32(2.0))()
    assert jax.tree.map(list, (out, grad)) == ([0.0, 2.0, 8.0], ([0.0, 8.0, 64.0],))
    line = Kernel("part", 0.002, Floor(4e9, 1e6)).line(flops=4e12, memory_rate=1e12)
    assert line.split() == ["part", "2.00", "1.00", "50%", "4.0", "1.0"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("kernels", "--attention=reference,flash"), "--attention: found flash, expected names out of cudnn, pallas, reference"),
        (("kernels", "--attention=pallas"), "model.attention: found pallas on devices of platform cpu, expected reference"),
        (("suite", "--only=large,giant"), "--only: found giant, expected names out of large, large pretraining, base,"),
        (("loop", "--steps=0"), "--steps: found 0, expected 1 or more"),
        (("reward", "--rows=0"), "--rows: found 0, expected 1 or more"),
        (("reward", "--size=giant"), "size: found giant, expected one of"),
    ],
)
def test_a_mistake_is_one_sentence(flags: tuple[str, ...], said: str):
    done = bench(*flags)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
