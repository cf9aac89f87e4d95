"""Soft VQA accuracy: the weight that the reference answers give to the predicted string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, mean


def vqa_accuracy(predictions: Sequence[str], references: Sequence[Mapping[str, float]]) -> Measured:
    """Mean of references[i].get(predictions[i], 0): the protocol of the official OFA evaluation, exact string match.

    A reference maps answers to weights in [0, 1]; with one answer of weight 1 this is plain accuracy.
    """
    check_same_length("vqa_accuracy", predictions, references)
    return mean(np.array([r.get(p, 0.0) for p, r in zip(predictions, references, strict=True)], np.float64))
