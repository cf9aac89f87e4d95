"""Every size learns the same on one device, on eight in four layouts, and in two processes, with all streams and everything random on.

In float64, where rounding leaves 1e-9 of a tensor's largest entry in what one step comes to, and 1e-6 in parameters 300 steps later; in
float32 the loss of one step agrees to 1e-5. Two things are done for some only, because compiling takes minutes: 300 steps for two sizes
that differ most (`sizes_case.LATER`), on one device, with tensor parallelism and in two processes; float32 with batch statistics, not
frozen ones too, which differ in what a device does by itself.

The tests of a size print how long their parts take (`pytest -s`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from sizes_case import LATER, NORMS, SIZES, STEPS, batch_of, loss_of, shrunk, start_of, train

from ofa_jax.config.check import check
from ofa_jax.config.schema import MeshConfig
from ofa_jax.config.sizes import SIZES as ALL_SIZES
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.gradients import _SMALL
from ofa_jax.train.state import abstract_state
from ofa_jax.train.token_objective import check_batch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from processes import run_together

PROGRAM = str(Path(__file__).with_name("sizes_program.py"))
TIMEOUT_S = 1_800.0
TENSOR = MeshConfig(data=2, fsdp=2, tensor=2)
LAYOUTS = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "data 2 x fsdp 4": MeshConfig(data=2, fsdp=4),
    "data 2 x fsdp 2 x tensor 2": TENSOR,
}
ONE = MeshConfig()
# Gradients below this part of the norm of all are zero in exact arithmetic: a key's bias moves all scores of a query alike.
NOTHING = 1e-13


@contextlib.contextmanager
def double_precision():
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


@contextlib.contextmanager
def timed(what: str):
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


def on(layout: MeshConfig, config):
    """Returns (the config for a layout, its mesh): of one device, or of eight."""
    count = 1 if layout is ONE else 8
    return dataclasses.replace(config, mesh=layout), make_mesh(layout, devices=jax.devices()[:count])


def is_nothing(name: str, first: dict[str, np.ndarray]) -> bool:
    """Whether a gradient of `first` is rounding, of what is zero in exact arithmetic."""
    return 0 < np.max(np.abs(first[name])) < NOTHING * float(first["metrics/grad_norm"])


def assert_one_step_agrees(found, expected, *, what: str) -> None:
    assert found.keys() == expected.keys()
    for name, a in expected.items():
        if name.startswith("gradients/") and is_nothing(name, expected):
            assert name.endswith("key/bias"), f"{what}: {name} has no gradient to speak of"
            assert is_nothing(name, found) or not np.any(found[name]), (what, name)
            continue
        error, largest = np.max(np.abs(found[name] - a)), np.max(np.abs(a))
        assert error <= 1e-9 * largest, (what, name, error, largest)


def assert_parameters_agree(found, expected, first, *, what: str) -> None:
    assert found.keys() == expected.keys()
    for name, a in expected.items():
        gradient = name.replace("params/", "gradients/", 1)
        error, largest = np.max(np.abs(found[name] - a)), np.max(np.abs(a))
        if gradient in first and is_nothing(gradient, first):
            largest = 1.0  # Adam divides their rounding by itself, where eps does not outweigh it; nothing depends on them
        assert error <= 1e-6 * largest, (what, name, error, largest)


def test_every_size_is_shrunk_to_what_all_layouts_take():
    assert set(SIZES) == set(ALL_SIZES) - {"nano"}
    seen = set()
    for size in SIZES:
        config, whole = shrunk(size, norm="batch", precision="f32"), ALL_SIZES[size]
        for layout in LAYOUTS.values():
            check(dataclasses.replace(config, mesh=layout), 8)
        check_batch(batch_of(config, 0), config)
        model = config.model
        assert model.head_width == whole.head_width and model.num_heads == 2
        assert model.encoder_layers * whole.decoder_layers == model.decoder_layers * whole.encoder_layers
        assert min(model.resnet.blocks) >= 2
        assert {block.stream for block in config.data.row_blocks} == {"pairs", "images", "text"}
        assert (config.data.row_blocks[0].num_patches > 0) == (size in ("base", "large"))
        gradients = jax.tree.leaves(abstract_state(config).params)
        for ndim in (3, 5):  # stacked matrices and kernels
            assert any(g.size < _SMALL for g in gradients if g.ndim == ndim)
            if ndim == 3 or size in ("large", "huge"):
                assert any(g.size >= _SMALL for g in gradients if g.ndim == ndim)
        seen.add((model.width, model.encoder_layers, model.resnet.blocks, config.data.row_blocks[0].num_patches))
    assert len(seen) == len(SIZES)


@pytest.fixture(scope="module", params=SIZES)
def size_and_processes(request, tmp_path_factory):
    """A size, and the folder of what two processes wrote of it."""
    folder = tmp_path_factory.mktemp(request.param)
    with timed(f"{request.param}: two processes"):
        results = run_together([sys.executable, PROGRAM, str(folder), request.param], folder, count=2, timeout_s=TIMEOUT_S)
    assert [code for code, _ in results] == [0, 0], results
    return request.param, folder


@pytest.mark.full
@pytest.mark.parametrize("norm", NORMS)
def test_layouts_and_processes_agree_in_float64(size_and_processes, norm):
    size, folder = size_and_processes
    steps = STEPS if LATER.get(size) == norm else 1
    with double_precision():
        config = shrunk(size, norm=norm, precision="f64")
        start = start_of(config)
        with timed(f"{size}, {norm}: one device, {steps} steps"):
            expected, last = train(*on(ONE, config), start, steps=steps)
        assert expected["metrics/loss"] > 1 and int(last["steps/0"]) == steps
        assert np.all(expected["metrics/task_tokens"][[0, 1, 5, 6, 7]] > 0)
        changed = any(np.any(value != (1.0 if name.endswith("var") else 0.0)) for name, value in expected.items() if "stats/" in name)
        assert changed == (norm == "batch")
        for name, layout in LAYOUTS.items():
            many = steps if layout is TENSOR else 1
            with timed(f"{size}, {norm}: {name}, {many} steps"):
                found, after = train(*on(layout, config), start, steps=many)
            assert_one_step_agrees(found, expected, what=name)
            if many == steps:
                assert_parameters_agree(after, last, expected, what=name)
    with np.load(folder / f"{norm}_first.npz") as found, np.load(folder / f"{norm}_last.npz") as after:
        assert_one_step_agrees(dict(found), expected, what="two processes")
        assert_parameters_agree(dict(after), last, expected, what="two processes")


@pytest.mark.full
def test_the_loss_of_a_step_agrees_in_float32(size_and_processes):
    size, folder = size_and_processes
    config = shrunk(size, norm=NORMS[0], precision="f32")
    start = start_of(config)
    losses = {"two processes": float(np.load(folder / "loss_f32.npy"))}
    with timed(f"{size}: float32 in five layouts"):
        expected = loss_of(*on(ONE, config), start)
        losses |= {name: loss_of(*on(layout, config), start) for name, layout in LAYOUTS.items()}
    for name, loss in losses.items():
        assert abs(loss - expected) <= 1e-5 * expected, (name, loss, expected)
