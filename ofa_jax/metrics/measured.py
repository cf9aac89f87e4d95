"""What every metric returns: its value, a score an example, and how to compute it again on a resample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sized

import numpy as np


@dataclasses.dataclass(frozen=True)
class Measured:
    """A metric of `n` examples.

    `scores` is float64 [n], one number an example for listings. `resample(counts)` takes float64 [B, n], how often each example
    occurs in each of B resamples, and returns the metric of every resample, float64 [B]; `value` is the metric of the examples
    themselves, all counts being 1.
    """

    value: float
    scores: np.ndarray
    resample: Callable[[np.ndarray], np.ndarray]

    @property
    def n(self) -> int:
        return len(self.scores)


def check_same_length(name: str, predictions: Sized, references: Sized) -> None:
    """Raises ValueError, one sentence, where the two lists do not pair up or hold nothing."""
    if len(predictions) != len(references):
        raise ValueError(f"{name}: found {len(predictions)} predictions and {len(references)} references, expected equally many")
    if len(predictions) == 0:
        raise ValueError(f"{name}: found no examples, expected at least one")


def ratio(hits: np.ndarray, totals: np.ndarray, scores: np.ndarray | None = None) -> Measured:
    """The metric sum(hits) / sum(totals) over examples, [n] each: a mean of scores (totals 1), a micro-averaged share, or F1.

    A resample whose totals sum to 0 scores 0. `scores` defaults to hits / totals (0 where a total is 0).
    """
    hits, totals = np.asarray(hits, np.float64), np.asarray(totals, np.float64)
    if scores is None:
        scores = np.divide(hits, totals, out=np.zeros_like(hits), where=totals > 0)

    def resample(counts: np.ndarray) -> np.ndarray:
        top, bottom = counts @ hits, counts @ totals
        return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)

    return Measured(value=float(resample(np.ones((1, len(hits))))[0]), scores=scores, resample=resample)


def mean(scores: np.ndarray) -> Measured:
    """The plain mean of per-example scores [n]."""
    scores = np.asarray(scores, np.float64)
    return ratio(scores, np.ones_like(scores), scores)
