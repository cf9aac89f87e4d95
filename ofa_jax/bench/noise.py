"""Batches of noise that cost what real ones do."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from ofa_jax.config.schema import AnyRun
from ofa_jax.data.batch import Block
from ofa_jax.parallel.mesh import batch_sharding
from ofa_jax.train.step import abstract_blocks

_IDS = (4, 200)  # of drawn tokens: no padding, and text in any vocabulary


def noise_batch(config: AnyRun, mesh: Mesh) -> dict[str, Block]:
    """Returns the blocks of a global batch on the mesh: drawn ids and pixels, every position and picture there, weights of 1."""
    return {name: _noise(block) for name, block in abstract_blocks(config, batch_sharding(mesh)).items()}


def _noise(block: Block) -> Block:
    draw = np.random.default_rng(0)

    def fill(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if name.endswith("_ids"):
            values = np.zeros(leaf.shape) if name == "task_ids" else draw.integers(*_IDS, leaf.shape)
        elif name == "images":
            values = draw.integers(0, 256, leaf.shape)
        else:
            values = np.full(leaf.shape, name in ("image_mask", "confidence"))
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return Block(**{name: None if leaf is None else fill(name, leaf) for name, leaf in block._asdict().items()})
