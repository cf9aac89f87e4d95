"""Which predicted objects of one picture count as found: greedy matching inside a label, in the order of the predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.acc_at_iou import BoxLike, iou

LabelledBox = tuple[str, BoxLike]


def match_objects(predicted: Sequence[LabelledBox], true: Sequence[LabelledBox], *, threshold: float) -> np.ndarray:
    """bool [len(predicted)]: each prediction in turn takes the free true box of its label with the largest IoU, if >= threshold.

    This is COCO's matching for one threshold without crowds, given predictions in order of falling score
    (nothing is added to the union here).
    """
    hits = np.zeros(len(predicted), bool)
    if not predicted or not true:
        return hits
    found = np.array([tuple(b) for _, b in predicted], np.float64)[:, None]
    overlaps = iou(found, np.array([tuple(b) for _, b in true], np.float64), eps=0.0)
    free = np.ones(len(true), bool)
    labels = np.array([label for label, _ in true])
    for i, (label, _) in enumerate(predicted):
        candidates = np.where(free & (labels == label), overlaps[i], -1.0)
        best = len(true) - 1 - int(np.argmax(candidates[::-1]))  # COCOeval keeps the last of equals
        if candidates[best] >= threshold:
            hits[i], free[best] = True, False
    return hits
