"""F1 of detected objects at IoU 0.5."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.matching import LabelledBox, match_objects
from ofa_jax.metrics.measured import Measured, check_same_length, ratio


def f1_50(predictions: Sequence[Sequence[LabelledBox]], references: Sequence[Sequence[LabelledBox]]) -> Measured:
    """Micro-averaged F1 = 2 hits / (predicted + true objects) over all pictures; a hit has the right label and IoU >= 0.5.

    An example is one picture; its own score is its F1 (1 where nothing is there and nothing was predicted).
    """
    check_same_length("f1_50", predictions, references)
    hits, totals = [], []
    for predicted, true in zip(predictions, references, strict=True):
        hits.append(2.0 * match_objects(predicted, true, threshold=0.5).sum())
        totals.append(float(len(predicted) + len(true)))
    hits, totals = np.array(hits), np.array(totals)
    scores = np.where(totals > 0, hits / np.maximum(totals, 1), 1.0)
    return ratio(hits, totals, scores)
