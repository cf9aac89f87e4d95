"""One batch, one gradient: whole, in micro-batches, on eight devices, and with more padding; and the same parameters 300 steps later.

In float64, where rounding leaves 1e-9 of a tensor's largest entry: in float32 Adam amplifies the rounding of gradients that are zero in
exact arithmetic, such as those of key biases.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from train_case import BLOCKS, CONFIG, Batches

from ofa_jax.config.schema import PAD_ID, DataConfig, LossConfig, MeshConfig
from ofa_jax.data.batch import Batch, Block, pad_block
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.state import init_state, state_shardings
from ofa_jax.train.step import make_train_step, put_batch

pytestmark = pytest.mark.full

ROWS, FULL = 16, 13  # of a block; rows that are no padding
# Without random draws, which each micro-batch and each length would make for itself; two pictures a group of batch norm.
EXACT = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(CONFIG.model, dropout=0.0, norm_group=2),
    precision="f64",
    data=DataConfig(blocks=tuple(dataclasses.replace(block, rows=ROWS, num_patches=0) for block in BLOCKS)),
    loss=LossConfig(label_smoothing=0.1, r_drop_alpha=0.5),
    steps=300,
)
LAYOUTS = {
    "1 x B": {},
    "4 x B/4": {"accumulate": 4},
    "8 devices": {"devices": 8},
    "2 x B/2 on 4 devices": {"accumulate": 2, "devices": 4},
    "fsdp": {"devices": 8, "mesh": MeshConfig(data=2, fsdp=4)},
    "more padding": {"rows": 24, "longer": 3},
}


@pytest.fixture(autouse=True, scope="module")
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def batch_of(data_step: int, *, rows: int = ROWS, longer: int = 0) -> Batch:
    """The batch of a step: `FULL` rows of each block, padded to `rows`, and sequences padded by `longer` further tokens."""
    batch = Batches(EXACT).batch(data_step)
    blocks = {}
    for name, block in batch.blocks.items():
        part = Block(*(None if values is None else values[: len(values) * FULL // ROWS] for values in block))
        padded = pad_block(part, rows)
        wider = {
            field: np.pad(getattr(padded, field), ((0, 0), (0, longer)), constant_values=PAD_ID)
            for field in ("source_ids", "decoder_ids", "target_ids")
        }
        blocks[name] = padded._replace(**wider)
    return batch._replace(blocks=blocks)


def config_of(*, norm: str, rows: int = ROWS, longer: int = 0, accumulate: int = 1, mesh: MeshConfig | None = None, devices: int = 1):
    blocks = tuple(
        dataclasses.replace(block, rows=rows, source_len=block.source_len + longer, target_len=block.target_len + longer)
        for block in EXACT.data.blocks
    )
    return dataclasses.replace(
        EXACT,
        model=dataclasses.replace(EXACT.model, image_norm=norm),
        data=DataConfig(blocks=blocks),
        optimizer=dataclasses.replace(EXACT.optimizer, accumulate=accumulate),
        mesh=mesh or EXACT.mesh,
    )


def train(layout: dict, *, norm: str, steps: int):
    """Returns (losses of the steps, first moments after the first one, parameters after the last), as NumPy arrays."""
    config = config_of(norm=norm, **layout)
    mesh = make_mesh(config.mesh, devices=jax.devices()[: layout.get("devices", 1)])
    start = config_of(norm=norm)  # the same parameters for all: shapes do not depend on the layout
    state = jax.device_get(init_state(start, make_mesh(start.mesh, devices=jax.devices()[:1])))
    state = jax.device_put(state, state_shardings(config, mesh))
    step = make_train_step(config, mesh, num_tasks=4)
    padding = {name: layout[name] for name in ("rows", "longer") if name in layout}
    losses, moments = [], None
    for data_step in range(steps):
        state, metrics = step(state, put_batch(batch_of(data_step, **padding), mesh))
        losses.append(float(metrics.loss))
        if data_step == 0:  # Adam's first moments are the clipped gradient times 1 - beta1
            moments = jax.device_get(state.opt_state)
    return losses, moments, jax.device_get(state.params)


def assert_close(found, expected, *, of_largest: float = 0.0, absolute: float = 0.0, what: str) -> None:
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(expected)[0], jax.tree.leaves(found), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        limit = max(of_largest * np.max(np.abs(a), initial=0.0), absolute)
        assert np.max(np.abs(a - b), initial=0.0) <= limit, (what, jax.tree_util.keystr(path), np.max(np.abs(a - b)), limit)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_every_layout_has_the_gradient_of_the_whole_batch(norm: str):
    whole, moments, _ = train(LAYOUTS["1 x B"], norm=norm, steps=1)
    assert whole[0] > 1
    for name, layout in LAYOUTS.items():
        losses, found, _ = train(layout, norm=norm, steps=1)
        np.testing.assert_allclose(losses, whole, rtol=1e-12, err_msg=name)
        assert_close(found, moments, of_largest=1e-9, absolute=1e-15, what=name)


def test_every_layout_has_the_same_parameters_after_300_steps():
    losses, _, params = train(LAYOUTS["1 x B"], norm="frozen", steps=EXACT.steps)
    assert losses[-1] < losses[0]
    for name in ("4 x B/4", "8 devices", "fsdp", "more padding"):
        _, _, found = train(LAYOUTS[name], norm="frozen", steps=EXACT.steps)
        assert_close(found, params, absolute=1e-6, what=name)
