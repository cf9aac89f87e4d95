"""CIDEr-D of captions (Vedantam et al., arXiv 1411.5726), by pycocoevalcap's scorer: n = 4, sigma = 6, clipped tf-idf, times 10."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer

from ofa_jax.metrics.measured import Measured, check_same_length, mean
from ofa_jax.metrics.words import normalise


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    """Mean CIDEr-D over examples on the scale where 1.0 is usually printed as 100.

    Document frequencies are those of the references of all examples; a resample averages per-example scores with these
    frequencies kept. With a single example every frequency is 1 of 1 and the score is 0 by definition.
    """
    check_same_length("cider", predictions, references)
    scorer = CiderScorer()
    for prediction, refs in zip(predictions, references, strict=True):
        scorer += (normalise(prediction), [normalise(r) for r in refs])
    scorer.compute_doc_freq()
    return mean(np.array(scorer.compute_cider(), np.float64))
