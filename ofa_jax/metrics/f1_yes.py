"""F1 of the answer "yes": the second metric of MRPC and QQP (Wang et al., GLUE, arXiv 1804.07461)."""

from __future__ import annotations

from collections.abc import Sequence

from ofa_jax.metrics.measured import Measured, ratio
from ofa_jax.metrics.yes_no import yes_no_cells


def f1_yes(predictions: Sequence[str], references: Sequence[str]) -> Measured:
    """2 TP / (2 TP + FP + FN) in [0, 1] over all examples, 0 where "yes" was neither predicted nor true.

    `scores` are 1 where the answer is right. A prediction that is neither "yes" nor "no" counts as wrong. Raises ValueError where a
    reference is neither.
    """
    cells = yes_no_cells("f1_yes", predictions, references)
    return ratio(2 * cells[:, 0], 2 * cells[:, 0] + cells[:, 1] + cells[:, 2], cells[:, 0] + cells[:, 3])
