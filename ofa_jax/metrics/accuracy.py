"""Share of predictions that equal their reference."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, mean


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> Measured:
    """Mean of [prediction == reference], compared as they are."""
    check_same_length("accuracy", predictions, references)
    return mean(np.array([p == r for p, r in zip(predictions, references, strict=True)], np.float64))
