"""Low-rank updates, once they are learned: added to the matrices beside which they stand."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from ofa_jax.config.schema import ModelConfig
from ofa_jax.parallel.rules import key_path_parts

NAME = "lora"  # of the module beside a kernel


def merged(params: nnx.State, model: ModelConfig) -> tuple[nnx.State, ModelConfig]:
    """Returns (the parameters of a model without updates that computes the same, its config): every kernel has `scale * down @ up` added,
    on the host, in the kernel's dtype.

    params: arrays of a model with the numbers of `model`; they come back as they are where it has no updates.
    """
    if not model.lora_rank:
        return params, model
    leaves = {key_path_parts(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    scale = model.lora[1]

    def kernel(path: tuple[str, ...], leaf: Any) -> Any:
        updates = [leaves.get((*path[:-1], NAME, name)) for name in ("down", "up")]
        if path[-1] != "kernel" or any(update is None for update in updates):
            return leaf
        down, up = (np.asarray(update, np.float64) for update in updates)
        return (np.asarray(leaf, np.float64) + scale * (down @ up)).astype(leaf.dtype)

    whole = jax.tree_util.tree_map_with_path(lambda path, leaf: kernel(key_path_parts(path), leaf), params)
    kept = [(path, leaf) for path, leaf in nnx.to_flat_state(whole) if NAME not in path]
    return nnx.from_flat_state(kept), dataclasses.replace(model, lora_rank=0)
