"""Answers of yes and no, counted by what was predicted and what is true: the four cells that F1 and Matthews correlation are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.measured import check_same_length

YES, NO = "yes", "no"


def yes_no_cells(name: str, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Returns float64 [n, 4], a single 1 in every row: true yes, false yes, false no, true no (of the prediction).

    A prediction that is neither counts as the wrong one of the two. Raises ValueError, which begins with `name`, where a reference is
    neither or the lists do not pair up.
    """
    check_same_length(name, predictions, references)
    cells = np.zeros((len(predictions), 4))
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if reference not in (YES, NO):
            raise ValueError(f"{name}: example {i}: found reference {reference!r}, expected {YES} or {NO}")
        right = prediction == reference
        if reference == YES:
            cells[i, 0 if right else 2] = 1
        else:
            cells[i, 3 if right else 1] = 1
    return cells
