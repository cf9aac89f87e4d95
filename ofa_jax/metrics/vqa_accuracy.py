"""Soft VQA accuracy: the weight that the reference answers give to the predicted string."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, mean


def answer_weights(answers: Sequence[str]) -> dict[str, float]:
    """The weight of every distinct string among people's answers, min(1, 0.3 * how many people gave exactly it).

    One, two, three and four people make 0.3, 0.6, 0.9 and 1, the weights of the answers in OFA's VQA files (they are those of
    `compute_softscore.py` in hengyuan-hu/bottom-up-attention-vqa). OFA's files hold only the 3,129 answers that training has often;
    here every answer counts.
    """
    return {answer: min(1.0, 3 * count / 10) for answer, count in Counter(answers).items()}


def vqa_accuracy(predictions: Sequence[str], references: Sequence[Mapping[str, float]]) -> Measured:
    """Mean of references[i].get(predictions[i], 0): the protocol of the official OFA evaluation, exact string match.

    A reference maps answers to weights in [0, 1]; with one answer of weight 1 this is plain accuracy.
    """
    check_same_length("vqa_accuracy", predictions, references)
    return mean(np.array([r.get(p, 0.0) for p, r in zip(predictions, references, strict=True)], np.float64))
