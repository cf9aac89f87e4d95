"""CIDEr-D of captions (Vedantam et al., arXiv 1411.5726, section 4 and the changes of CIDEr-D): n = 4, sigma = 6, clipped tf-idf, times 10.

Equal to pycocoevalcap's `CiderScorer`, which cannot be given document frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.document_frequencies import MAX_ORDER, DocumentFrequencies, document_frequencies, ngrams
from ofa_jax.metrics.measured import Measured, check_same_length, mean

_SIGMA = 6.0

# Of one text: tf-idf weights of the n-grams of each order, the norm of each order, the length.
_Weights = tuple[list[dict[str, float]], list[float], int]


def _weigh(text: str, frequencies: DocumentFrequencies) -> _Weights:
    """tf * (log of the number of images - log of the number that have the n-gram); an n-gram that none has counts as in one."""
    weights: list[dict[str, float]] = [{} for _ in range(MAX_ORDER)]
    length = 0
    log_images = math.log(frequencies.ref_len)
    for gram, count in ngrams(text).items():
        order = gram.count(" ")
        weights[order][gram] = count * (log_images - math.log(max(1, frequencies.document_frequency.get(gram, 0))))
        if order == 1:
            length += count  # pycocoevalcap's length is the number of bigrams
    return weights, [math.sqrt(sum(w**2 for w in of_order.values())) for of_order in weights], length


def _similarity(found: _Weights, true: _Weights) -> float:
    """Mean over the orders of the cosine with clipped weights, times a Gaussian of the difference in length."""
    penalty = math.exp(-((found[2] - true[2]) ** 2) / (2 * _SIGMA**2))
    total = 0.0
    for weights, others, norm, other_norm in zip(found[0], true[0], found[1], true[1], strict=True):
        if norm and other_norm:
            common = sum(min(w, others[gram]) * others[gram] for gram, w in weights.items() if gram in others)
            total += penalty * common / (norm * other_norm)
    return total / MAX_ORDER


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]], *, frequencies: DocumentFrequencies | None = None) -> Measured:
    """Mean CIDEr-D over examples on the scale where 1.0 is usually printed as 100.

    Document frequencies are those of the references of all examples unless `frequencies` gives those of a fixed corpus (the official
    validation and self-critical training do); a resample averages per-example scores with these frequencies kept. With a single
    example and no fixed corpus every frequency is 1 of 1 and the score is 0 by definition. The official self-critical reward ends every
    text with the word <eos>: append " eos" to predictions, references and the corpus for that.
    """
    check_same_length("cider", predictions, references)
    if frequencies is None:
        frequencies = document_frequencies(references)
    scores = []
    for i, (prediction, refs) in enumerate(zip(predictions, references, strict=True)):
        if not refs:
            raise ValueError(f"cider: example {i}: found no references, expected at least one")
        found = _weigh(prediction, frequencies)
        scores.append(10.0 * sum(_similarity(found, _weigh(ref, frequencies)) for ref in refs) / len(refs))
    return mean(np.array(scores, np.float64))
