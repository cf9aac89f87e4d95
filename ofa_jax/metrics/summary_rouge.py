"""ROUGE-1, ROUGE-2 and ROUGE-L of summaries (Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004), over Porter's stems.

Equal to the rouge-score package with `use_stemmer=True`, which OFA scores Gigaword with. (`rouge_l` is another metric: that of captions,
over whole words, with a beta of 1.2.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, mean
from ofa_jax.metrics.porter import stem
from ofa_jax.metrics.rouge_l import common_length

_WORD = re.compile(r"[a-z0-9]+")


def _stems(text: str) -> list[str]:
    """Lower-case words of ASCII letters and digits, those of four or more letters stemmed, as rouge-score cuts them."""
    return [stem(word) if len(word) > 3 else word for word in _WORD.findall(text.lower())]


def _f1(common: int, num_found: int, num_true: int) -> float:
    """2 P R / (P + R) with P = common / num_found and R = common / num_true; 0 where nothing is common."""
    return 2 * common / (num_found + num_true) if common else 0.0


def _f1_of_ngrams(found: list[str], true: list[str], n: int) -> float:
    """F1 of n-grams, of which as many are common as both texts have."""
    grams = [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (found, true)]
    return _f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total())


_KINDS: dict[str, Callable[[list[str], list[str]], float]] = {
    "1": lambda found, true: _f1_of_ngrams(found, true, 1),
    "2": lambda found, true: _f1_of_ngrams(found, true, 2),
    "l": lambda found, true: _f1(common_length(found, true), len(found), len(true)),
}


def summary_rouge(predictions: Sequence[str], references: Sequence[Sequence[str]], *, kind: str) -> Measured:
    """Mean F1 over examples, in [0, 1], of `kind` "1" (words), "2" (pairs of words) or "l" (longest common subsequence).

    Of several references the one with the greatest F1 counts. OFA publishes the median of 1,000 bootstrap means, which is this mean but
    for the draw. Raises ValueError for another kind, or an example without references.
    """
    if kind not in _KINDS:
        raise ValueError(f"summary_rouge: found kind {kind!r}, expected one of {', '.join(_KINDS)}")
    check_same_length("summary_rouge", predictions, references)
    scores = []
    for i, (prediction, refs) in enumerate(zip(predictions, references, strict=True)):
        if not refs:
            raise ValueError(f"summary_rouge: example {i}: found no references, expected at least one")
        found = _stems(prediction)
        scores.append(max(_KINDS[kind](found, _stems(ref)) for ref in refs))
    return mean(np.array(scores, np.float64))
