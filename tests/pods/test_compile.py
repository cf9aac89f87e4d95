"""`launch/compile.py` as people run it: for CPU devices here, and for a TPU where libtpu is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ofa_jax.pods.program import largest_arrays

ROOT = Path(__file__).resolve().parents[2]
DEBUG = f"--config={ROOT}/configs/ofa_tiny.py:debug"


def compile_step(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "compile.py"), *arguments]
    environ = {**os.environ, "JAX_OPTIMIZATION_LEVEL": "O0"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)


TEXTS = f"--config={ROOT}/configs/finetune/gigaword.py:size=tiny,debug"  # compiles in a quarter of the time: there are no pictures


@pytest.mark.parametrize(("config", "name"), [(TEXTS, "gigaword"), pytest.param(DEBUG, "ofa", marks=pytest.mark.full)])
def test_a_step_for_eight_cpu_devices_is_priced(tmp_path: Path, config: str, name: str):
    done = compile_step(config, "--topology=cpu:8", "--config.mesh.fsdp=4", "--skip_decoding", f"--json={tmp_path}/found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1} and found["chips"] == 8 and found["fits"]
    assert found["memory"]["peak"] > found["memory"]["params"] > 0
    # A device does its part of the model's operations, and what XLA writes as products beside (sums, positions) is little.
    assert sum(found["operations"].values()) / 8 < found["executed"] < 2 * sum(found["operations"].values()) / 8
    assert {(line["kind"], tuple(line["axes"])) for line in found["collectives"]}
    assert f"{name}_tiny_debug on cpu:8: 8 chips" in done.stdout and "memory of a chip" in done.stdout


def test_the_largest_arrays_of_a_trace_are_told_with_their_place():
    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), x), x, weights)[0])

    traced = jax.jit(jax.grad(loss)).trace(jnp.zeros((3, 64, 64)), jnp.zeros((1000, 64)))
    first, *_ = largest_arrays(traced.jaxpr.jaxpr)
    assert "x f32[3,1000,64]" in first  # what the loop keeps for the backward pass


@pytest.mark.full
@pytest.mark.tpu
def test_too_little_memory_is_exit_code_1_with_the_largest_arrays_and_what_to_do():
    done = compile_step(DEBUG, "--topology=v5e:2x2", "--skip_decoding", "--config.data.blocks.pairs.rows=4194304")
    assert done.returncode == 1
    said, *largest = done.stderr[done.stderr.index("DoesNotFitError") :].splitlines()
    assert said.endswith("GB needed, expected at most 16.91 GB; raise mesh.fsdp or optimizer.accumulate, or model.remat=full")
    assert len(largest) == 8 and all(" x f32[" in line and "models/" in line for line in largest)


@pytest.mark.full
def test_generation_gathers_the_weights_once(tmp_path: Path):
    done = compile_step(DEBUG, "--topology=cpu:8", "--config.mesh.fsdp=4", f"--json={tmp_path}/found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    # As many gathers as parameters are split; at every token it would be hundreds more.
    assert 0 < sum(line["turns"] for line in found["decoding"]["collectives"]) < 200
    assert "generation in training: captions of 16 pictures a chip, beam 5, 16 tokens" in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--topology=v5p:5x5x5",), "topology: found 'v5p:5x5x5', which TPU v5p does not come in; nearest: 4x4x8, 4x4x4,"),
        (("--topology=h100:8",), "topology h100:8: JAX compiles for H100 SXM on one alone"),
        (("--topology=cpu:3",), "data.blocks.pairs.rows: found 8, expected a multiple of 3"),
        (("--topology=cpu:8", "--config.mesh.tensor=3"), "mesh: found"),
        ((), "command line: the following arguments are required: --topology"),
        (("--topology=cpu:8", "--row_kb=0"), "command line: --row_kb: found 0, expected more than 0"),
    ],
)
def test_a_mistake_is_one_sentence(flags: tuple[str, ...], said: str):
    done = compile_step(DEBUG, *flags)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_tpu_needs_libtpu_and_no_chip(tmp_path: Path):
    if importlib.util.find_spec("libtpu") is None:
        done = compile_step(DEBUG, "--topology=v5e:2x4")
        assert done.returncode == 2
        assert "topology v5e:2x4: found no libtpu, expected it; `make tpu-env` installs it" in done.stderr
        return
    done = compile_step(DEBUG, "--topology=v5e:2x4", "--skip_decoding", f"--json={tmp_path}/found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["fits"] and found["memory_limit"] == 15.75 * 2**30 and found["times"]["step_s"] > 0 and 0 < found["mfu"] < 1
