"""Share of image codes that are predicted right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, ratio


def code_accuracy(predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> Measured:
    """Correct code positions over all code positions; EOS is no code and is not counted.

    Raises ValueError where a prediction's length differs from its reference's: both are one grid in raster order.
    """
    check_same_length("code_accuracy", predictions, references)
    hits, totals = [], []
    for i, (found, true) in enumerate(zip(predictions, references, strict=True)):
        if len(found) != len(true):
            raise ValueError(f"code_accuracy: example {i}: found {len(found)} codes, expected {len(true)}")
        hits.append(int(np.sum(np.asarray(found) == np.asarray(true))))
        totals.append(len(true))
    return ratio(np.array(hits), np.array(totals))
