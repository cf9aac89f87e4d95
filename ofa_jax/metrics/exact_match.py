"""Share of texts that say exactly what one of their references says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, mean
from ofa_jax.metrics.words import normalise


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    """Mean of [prediction is among its references], both as lower-case words without punctuation."""
    check_same_length("exact_match", predictions, references)
    hits = [normalise(p) in {normalise(r) for r in refs} for p, refs in zip(predictions, references, strict=True)]
    return mean(np.array(hits, np.float64))
