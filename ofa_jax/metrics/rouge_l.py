"""ROUGE-L of captions (Lin, ROUGE: A Package for Automatic Evaluation of Summaries, section 3), as pycocoevalcap computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, mean
from ofa_jax.metrics.words import normalise


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, row by row of its table."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0  # the row above, one column to the left
        for j, other in enumerate(b, 1):
            above = row[j]
            row[j] = before + 1 if word == other else max(above, row[j - 1])
            before = above
    return row[-1]


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]], *, beta: float = 1.2) -> Measured:
    """Mean over examples of F = (1 + beta^2) P R / (R + beta^2 P), P and R being LCS over the words of prediction and reference.

    P and R are each the greatest over the references, which need not be the same one: pycocoevalcap's rule. As there, an empty text
    counts as one empty word.
    """
    check_same_length("rouge_l", predictions, references)
    scores = []
    for i, (prediction, refs) in enumerate(zip(predictions, references, strict=True)):
        if not refs:
            raise ValueError(f"rouge_l: example {i}: found no references, expected at least one")
        found, known = normalise(prediction).split(" "), [normalise(r).split(" ") for r in refs]
        common = [common_length(found, words) for words in known]
        precision = max(common) / len(found)
        recall = max(length / len(words) for length, words in zip(common, known, strict=True))
        bottom = recall + beta**2 * precision
        scores.append((1 + beta**2) * precision * recall / bottom if bottom else 0.0)
    return mean(np.array(scores, np.float64))
