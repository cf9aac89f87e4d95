"""Matthews correlation of answers of yes and no, CoLA's metric (Warstadt et al., arXiv 1805.12471)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured
from ofa_jax.metrics.yes_no import yes_no_cells


def _correlation(cells: np.ndarray) -> np.ndarray:
    """(TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), float64 [B], of sums [B, 4] in the order of `yes_no_cells`.

    (Matthews, Biochimica et Biophysica Acta 405, 1975.) 0 where only one answer was predicted or only one is true, as scikit-learn has it.
    """
    tp, fp, fn, tn = cells.T
    bottom = np.sqrt((tp + fp) * (tp + fn)) * np.sqrt((tn + fp) * (tn + fn))
    return np.divide(tp * tn - fp * fn, bottom, out=np.zeros_like(bottom), where=bottom > 0)


def mcc(predictions: Sequence[str], references: Sequence[str]) -> Measured:
    """Correlation in [-1, 1] over all examples; a resample counts its cells anew. `scores` are 1 where the answer is right.

    A prediction that is neither "yes" nor "no" counts as wrong. Raises ValueError where a reference is neither.
    """
    cells = yes_no_cells("mcc", predictions, references)

    def resample(counts: np.ndarray) -> np.ndarray:
        return _correlation(counts @ cells)

    return Measured(value=float(_correlation(cells.sum(0, keepdims=True))[0]), scores=cells[:, 0] + cells[:, 3], resample=resample)
