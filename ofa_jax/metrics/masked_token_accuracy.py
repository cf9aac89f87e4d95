"""Share of masked-out tokens that text infilling restores, and which tokens of a noised text are masked out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, ratio


def masked_positions(noised: Sequence[int], original: Sequence[int], *, mask_id: int) -> np.ndarray | None:
    """bool [len(original)]: True for tokens that the noised text does not show; None where it is not a noising of the original.

    `noised` holds runs of the original in order with one mask for every hidden (possibly empty) span. Runs are placed leftmost, the
    last one at the end. Where a text repeats itself several placements explain what is seen; they hide equally many tokens.
    """
    runs: list[list[int]] = [[]]
    for token in noised:
        if token == mask_id:
            runs.append([])
        else:
            runs[-1].append(int(token))
    original = [int(t) for t in original]
    hidden = np.ones(len(original), bool)
    if len(runs) == 1:
        return np.zeros(len(original), bool) if runs[0] == original else None
    first, last = runs[0], runs[-1]
    end = len(original) - len(last)
    if end < len(first) or original[: len(first)] != first or original[end:] != last:
        return None
    hidden[: len(first)] = False
    hidden[end:] = False
    at = len(first)
    for run in runs[1:-1]:
        while at + len(run) <= end and original[at : at + len(run)] != run:
            at += 1
        if at + len(run) > end:
            return None
        hidden[at : at + len(run)] = False
        at += len(run)
    return hidden


def masked_token_accuracy(
    predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]], hidden: Sequence[Sequence[bool]]
) -> Measured:
    """Correct tokens over masked-out tokens of all examples; tokens that the noised source shows are not counted."""
    check_same_length("masked_token_accuracy", predictions, references)
    hits, totals = [], []
    for i, (found, true, where) in enumerate(zip(predictions, references, hidden, strict=True)):
        if not len(found) == len(true) == len(where):
            raise ValueError(
                f"masked_token_accuracy: example {i}: found {len(found)} predicted, {len(true)} true tokens and {len(where)} marks, "
                "expected equally many"
            )
        where = np.asarray(where, bool)
        hits.append(int(np.sum((np.asarray(found) == np.asarray(true)) & where)))
        totals.append(int(where.sum()))
    return ratio(np.array(hits), np.array(totals))
