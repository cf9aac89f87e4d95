"""Share of examples whose true class is among the k classes of the greatest score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, mean


def top_k_accuracy(scores: np.ndarray, labels: Sequence[int] | np.ndarray, *, k: int = 1) -> Measured:
    """Mean of [label is among the k greatest of its row]. scores float [n, classes], labels int [n].

    Of equal scores the lower index comes first, so that k = 1 is argmax. -inf is a score (a class that a trie forbids); NaN is a fault.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    check_same_length("top_k_accuracy", scores, labels)
    if scores.ndim != 2 or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"top_k_accuracy: found scores {scores.shape} and {labels.dtype} labels {labels.shape}, expected [n, classes] and integers [n]"
        )
    num_classes = scores.shape[1]
    if not 1 <= k <= num_classes:
        raise ValueError(f"top_k_accuracy: found k = {k}, expected 1 to the number of classes ({num_classes})")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise ValueError(f"top_k_accuracy: example {outside[0]}: found label {labels[outside[0]]}, expected 0 to {num_classes - 1}")
    broken = np.flatnonzero(np.isnan(scores).any(1))
    if len(broken):  # nothing is greater than NaN, so it would count as right
        raise ValueError(f"top_k_accuracy: example {broken[0]}: found a score that is NaN, expected numbers")
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(num_classes) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(1)
    return mean((rank < k).astype(np.float64))
