"""Inception score of generated pictures (Salimans et al., arXiv 1606.03498, section 4): exp of the mean divergence of each picture's class
probabilities from those of all.

Which network gives the probabilities is part of the number. OFA's is torchvision's Inception v3 with pictures in [0, 1] at 299 px (not
normalised as that network was trained) and a single split.
"""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy

from ofa_jax.metrics.measured import Measured

_SUM_TOLERANCE = 1e-2  # of a row of probabilities, which half precision rounds


def _checked(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities float [n, classes] as float64 with rows that sum to 1 exactly. Raises ValueError where they are none."""
    rows = np.asarray(probabilities, np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"inception_score: found probabilities {rows.shape}, expected [n, classes]")
    total = rows.sum(1)
    broken = np.flatnonzero(~((rows >= 0).all(1) & (np.abs(total - 1) <= _SUM_TOLERANCE)))
    if len(broken):
        i = broken[0]
        raise ValueError(
            f"inception_score: picture {i}: found a row from {rows[i].min():.3g} on that sums to {total[i]:.3g}, expected probabilities"
        )
    return rows / total[:, None]


def inception_score(probabilities: np.ndarray) -> Measured:
    """The score, 1 to the number of classes, of class probabilities float [n, classes] in one split; a resample takes the mean anew.

    `scores` are each picture's divergence from the mean, in nats. Raises ValueError where rows are no probabilities.
    """
    rows = _checked(probabilities)
    negative_entropy = xlogy(rows, rows).sum(1)

    def resample(counts: np.ndarray) -> np.ndarray:
        num = counts.sum(1)
        mean = counts @ rows / num[:, None]
        return np.exp(counts @ negative_entropy / num - xlogy(mean, mean).sum(1))

    overall = rows.mean(0)
    # A class that the mean lacks no picture has.
    scores = negative_entropy - xlogy(rows, np.where(overall > 0, overall, 1.0)).sum(1)
    return Measured(value=float(np.exp(scores.mean())), scores=scores, resample=resample)


def inception_score_of_splits(probabilities: np.ndarray, *, splits: int) -> tuple[float, float]:
    """Returns mean and standard deviation (over k, not k - 1) of the scores of k equal parts in order, as papers with 10 splits give them.

    n // k pictures a part; what remains at the end is left out, as in OFA's script. Raises ValueError where k does not fit n.
    """
    rows = _checked(probabilities)
    if not 1 <= splits <= len(rows):
        raise ValueError(f"inception_score: found {splits} splits of {len(rows)} pictures, expected 1 to as many as there are pictures")
    size = len(rows) // splits
    values = [inception_score(rows[k * size : (k + 1) * size]).value for k in range(splits)]
    return float(np.mean(values)), float(np.std(values))
