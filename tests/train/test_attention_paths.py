"""A training step with each attention learns what it does with the reference: sampled patches and whole grids, texts and codes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ofa_jax.bench.noise import noise_batch
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import MeshConfig, RunConfig
from ofa_jax.models.attention_tpu import step_by_step
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.state import init_state
from ofa_jax.train.step import make_train_step

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = {"one device": MeshConfig(), "fsdp 2 x tensor 2": MeshConfig(data=1, fsdp=2, tensor=2)}


def with_attention(name: str, **model: Any) -> RunConfig:
    config = read_config(f"{ROOT}/configs/ofa_tiny.py:debug")
    assert isinstance(config, RunConfig)
    small = {"rows": 4, "source_len": 20, "target_len": 18}
    blocks = tuple(
        dataclasses.replace(block, **small, num_patches=10 if block.name == "pairs" else 0)
        for block in config.data.blocks
        if block.name in ("pairs", "infilling")
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **{"attention": name, "layers": "scan", **model}),
        data=dataclasses.replace(config.data, blocks=blocks),
    )


def one_step(config: RunConfig, layout: MeshConfig) -> dict[str, np.ndarray]:
    """Returns what a step on noise reports, and the parameters' first moments: a part of their gradients."""
    config = dataclasses.replace(config, mesh=layout)
    mesh = make_mesh(layout, devices=jax.devices()[: 1 if layout == MeshConfig() else 4])
    with step_by_step():
        state, metrics = make_train_step(config, mesh, num_tasks=8)(init_state(config, mesh), noise_batch(config, mesh))
    found = {"loss": metrics.loss, "grad_norm": metrics.grad_norm, "task_nll": metrics.task_nll}
    moments = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if leaf.ndim}
    return {name: np.asarray(value, np.float64) for name, value in (found | moments).items()}


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_with_pallas_is_the_references(layout: str):
    ours, theirs = (one_step(with_attention(name), LAYOUTS[layout]) for name in ("pallas", "reference"))
    assert ours.keys() == theirs.keys() and len(ours) > 50
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=2e-5 * np.abs(value).max() + 1e-9, err_msg=name)
