"""The random keys of a run: one for each purpose, so that no two uses share random numbers."""

from __future__ import annotations

import jax

INIT_KEY, DATA_KEY, REVISION_KEY = 0, 1, 2  # first words folded into the run's key


def run_key(seed: int, purpose: int) -> jax.Array:
    """Returns the key of one purpose (`INIT_KEY`, `DATA_KEY`, `REVISION_KEY`) of a run."""
    return jax.random.fold_in(jax.random.key(seed), purpose)
