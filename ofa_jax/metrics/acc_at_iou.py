"""Share of predicted boxes that overlap the true box enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, mean

BoxLike = Sequence[float]  # x0 y0 x1 y1


def iou(boxes: np.ndarray, others: np.ndarray, *, eps: float = 1e-6) -> np.ndarray:
    """Intersection over union of float [..., 4] x0 y0 x1 y1 with broadcasting, float64 [...].

    As the official grounding evaluation: `eps` is added to the union and the overlap must be positive in both axes.
    """
    a, b = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    overlap = np.where((width > 0) & (height > 0), width * height, 0.0)
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    # The tiny floor keeps 0 / 0 out where eps is 0; an overlap of exactly half then is exactly 0.5.
    return overlap / np.maximum(area_a + area_b - overlap + eps, 1e-12)


def acc_at_iou(predictions: Sequence[BoxLike | None], references: Sequence[BoxLike], *, threshold: float = 0.5) -> Measured:
    """Mean of [IoU >= threshold]; None, a prediction that is no box, counts as wrong."""
    check_same_length("acc_at_iou", predictions, references)
    none = (0.0, 0.0, 0.0, 0.0)
    found = np.array([none if p is None else tuple(p) for p in predictions], np.float64)
    return mean((iou(found, np.array([tuple(r) for r in references], np.float64)) >= threshold).astype(np.float64))
