"""Precision policies: which dtype holds parameters, which one the products run in, which one norms, softmax and logits use."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Policy:
    """Dtypes of a model. Hashable, so that a module can hold it as a static attribute."""

    name: str
    param: np.dtype  # of stored parameters
    compute: np.dtype  # of activations and matrix products
    accum: np.dtype  # of softmax, norm statistics, running statistics and logits


_FLOAT32, _FLOAT64, _BFLOAT16 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(jnp.bfloat16)
POLICIES: dict[str, Policy] = {
    "f32": Policy("f32", param=_FLOAT32, compute=_FLOAT32, accum=_FLOAT32),
    "bf16": Policy("bf16", param=_FLOAT32, compute=_BFLOAT16, accum=_FLOAT32),
    "f64": Policy("f64", param=_FLOAT64, compute=_FLOAT64, accum=_FLOAT64),
}


def policy(name: str) -> Policy:
    """Returns the policy called `name`.

    Raises:
      ValueError: the name is unknown, or it is "f64" while JAX truncates to 32 bits.
    """
    if name not in POLICIES:
        raise ValueError(f"precision: found {name!r}, expected one of {sorted(POLICIES)}")
    if name == "f64" and not jax.config.read("jax_enable_x64"):
        raise ValueError("precision: found 'f64' with jax_enable_x64 off, expected jax.config.update('jax_enable_x64', True) first")
    return POLICIES[name]
