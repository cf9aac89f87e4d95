"""Percentile bootstrap over records."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured

_CHUNK_ENTRIES = 4_000_000  # entries of one chunk of counts: 32 MB


def interval_95(
    measured: Measured, *, records: Sequence[Hashable] | None = None, num_samples: int = 1_000, seed: int = 0
) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the metric over `num_samples` resamples, the same for the same seed.

    Whole records are resampled with replacement, as many as there are: `records[i]` names the record of example i, so questions of one
    picture, which are not independent, stay together. None makes every example its own record. (Efron and Tibshirani, An
    Introduction to the Bootstrap, chapter 13.)
    """
    if num_samples < 1:
        raise ValueError(f"eval.bootstrap_samples: found {num_samples}, expected at least 1")
    if records is None:
        groups = np.arange(measured.n)
    else:
        if len(records) != measured.n:
            raise ValueError(f"bootstrap: found {len(records)} record names for {measured.n} examples, expected equally many")
        index: dict[Hashable, int] = {}
        groups = np.array([index.setdefault(r, len(index)) for r in records])
    num_groups = int(groups.max()) + 1
    draw = np.random.Generator(np.random.Philox(key=seed))
    chunk = max(1, min(num_samples, _CHUNK_ENTRIES // max(measured.n, num_groups)))
    values = []
    for start in range(0, num_samples, chunk):
        size = min(chunk, num_samples - start)
        drawn = draw.integers(num_groups, size=(size, num_groups)) + num_groups * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_groups).reshape(size, num_groups)
        values.append(measured.resample(counts[:, groups].astype(np.float64)))
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return float(low), float(high)


def interval_text(interval: Sequence[float | None]) -> str:
    """Returns an interval as text; "none" for a metric that has none (FID is no mean over pictures)."""
    low, high = interval
    return "none" if low is None or high is None else f"{low:.3f} .. {high:.3f}"
