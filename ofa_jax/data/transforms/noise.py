"""BART's text infilling (Lewis et al. 2020, section 2.2), as OFA uses it: whole words, Poisson spans, one MASK per span."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MASK_RATIO = 0.3  # of the words; the official default, as is the next
POISSON_LAMBDA = 3.0


@functools.lru_cache(maxsize=8)
def _poisson_cumulative(rate: float) -> np.ndarray:
    """float64 [K]: cumulative masses of span lengths 0..K-1. fairseq's table ends with the first mass below 1e-7, and is renormalised."""
    masses = [math.exp(-rate)]
    while masses[-1] >= 1e-7:
        masses.append(masses[-1] * rate / len(masses))
    cumulative = np.cumsum(masses)
    return cumulative / cumulative[-1]


class Noised(NamedTuple):
    """Result of `infill`."""

    ids: list[int]  # what is left, with MASK ids in it
    removed: list[bool]  # of every input token: it is not to be seen in `ids`


def _span_lengths(budget: int, *, cumulative: np.ndarray, draw: np.random.Generator) -> list[int]:
    """Lengths (zeros included) whose sum is exactly `budget`: drawn until the sum reaches it, the last one shortened."""
    lengths: list[int] = []
    total = 0
    while True:
        for length in np.searchsorted(cumulative, draw.random(budget), side="right").tolist():
            if total + length >= budget:
                return [*lengths, budget - total]
            lengths.append(length)
            total += length


def infill(
    ids: Sequence[int],
    *,
    word_starts: np.ndarray,
    mask_id: int,
    draw: np.random.Generator,
    mask_ratio: float = MASK_RATIO,
    poisson_lambda: float = POISSON_LAMBDA,
) -> Noised:
    """Replace spans of words by one MASK each, and insert MASKs where a span of length zero was drawn.

    `ids` is a text without BOS and EOS; `word_starts` is bool [num_text] (`Tokenizer.word_starts`). ceil(mask_ratio * words) words
    are masked, words being the word-start tokens; tokens before the first one are never touched. Spans start at distinct word starts
    and end with the text; where they overlap they become one MASK. No randomly replaced tokens, no permutation, no rotation.
    """
    is_start = word_starts[np.asarray(ids, np.int64)] if len(ids) else np.zeros(0, bool)
    starts = np.flatnonzero(is_start)
    # Rounded first, so that 0.3 of 10 words is 3 words in every arithmetic.
    budget = math.ceil(round(len(starts) * mask_ratio, 6))
    if budget == 0:
        return Noised(list(ids), [False] * len(ids))
    lengths = _span_lengths(budget, cumulative=_poisson_cumulative(poisson_lambda), draw=draw)
    spans = [length for length in lengths if length > 0]
    num_inserts = len(lengths) - len(spans)
    first_tokens = draw.permutation(starts)[: len(spans)].tolist()

    is_start = is_start.tolist()
    masked = set(first_tokens)
    removed = [False] * len(ids)
    covered = [False] * len(ids)  # deleted by a span that began further left; deletes that span's MASK, too
    for first, length in zip(first_tokens, spans, strict=True):
        removed[first] = True
        words_left = length - 1
        for position in range(first + 1, len(ids)):
            words_left -= is_start[position]
            if words_left < 0:
                break
            removed[position] = covered[position] = True
    out = [mask_id if position in masked else token for position, token in enumerate(ids) if not covered[position]]
    if num_inserts:
        slots = np.zeros(len(out) + num_inserts, bool)
        slots[draw.permutation(len(slots))[:num_inserts]] = True
        rest = iter(out)
        out = [mask_id if slot else next(rest) for slot in slots.tolist()]
    return Noised(out, removed)
