"""BLEU-4 of captions with pycocoevalcap's n-gram counts, reference length "closest", and its corpus formula."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from ofa_jax.metrics.measured import Measured, check_same_length
from ofa_jax.metrics.words import normalise

_ORDER = 4
_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's guards against division by zero


def _corpus_bleu(stats: np.ndarray) -> np.ndarray:
    """BLEU-4, float64 [B], of summed counts float64 [B, 10]: 4 matched, 4 guessed, test length, reference length."""
    correct, guess, test_len, ref_len = stats[:, :4], stats[:, 4:8], stats[:, 8], stats[:, 9]
    bleu = np.prod((correct + _TINY) / (guess + _SMALL), axis=1) ** (1 / _ORDER)
    length_ratio = (test_len + _TINY) / (ref_len + _SMALL)
    # An empty hypothesis has a ratio near 0, whose inverse would only overflow to a penalty of 0.
    penalty = np.exp(np.maximum(1 - 1 / length_ratio, -700.0))
    return bleu * np.where(length_ratio < 1, penalty, 1.0)


def bleu4(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    """Corpus BLEU-4 in [0, 1]; a resample sums its examples' n-gram counts anew. `scores` are the unsmoothed sentence values."""
    check_same_length("bleu4", predictions, references)
    scorer = BleuScorer(n=_ORDER)
    for prediction, refs in zip(predictions, references, strict=True):
        scorer += (normalise(prediction), [normalise(r) for r in refs])
    rows = []
    for counts in scorer.ctest:
        closest = min((abs(length - counts["testlen"]), length) for length in counts["reflen"])[1]
        rows.append([*counts["correct"], *counts["guess"], counts["testlen"], closest])
    stats = np.array(rows, np.float64)

    def resample(counts: np.ndarray) -> np.ndarray:
        return _corpus_bleu(counts @ stats)

    return Measured(value=float(_corpus_bleu(stats.sum(0, keepdims=True))[0]), scores=_corpus_bleu(stats), resample=resample)
