"""Text infilling noise: what always holds, and the statistics of the official algorithm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.data.transforms.noise import _poisson_cumulative, infill

MASK = 0
WORD_STARTS = np.array([True, True, False])  # ids: MASK, the beginning of a word, its continuation


def make_text(words: int, tokens: int, draw: np.random.Generator) -> list[int]:
    ids = np.ones(tokens, int)
    ids[draw.choice(np.arange(1, tokens), tokens - words, replace=False)] = 2
    return ids.tolist()


def test_span_lengths_are_poissons_up_to_17() -> None:
    cumulative = _poisson_cumulative(3.0)
    masses = np.diff(cumulative, prepend=0)
    assert len(masses) == 18 and cumulative[-1] == 1
    np.testing.assert_allclose(masses, [math.exp(-3) * 3**k / math.factorial(k) for k in range(18)], rtol=1e-6)


def test_statistics_of_a_passage() -> None:
    """200 words in 256 tokens: a budget of 60 words, about 17 visible masks, 69 tokens removed, a length of 205."""
    draw = np.random.default_rng(1)
    found = []
    for _ in range(1500):
        noised = infill(make_text(200, 256, draw), word_starts=WORD_STARTS, mask_id=MASK, draw=draw)
        found.append((noised.ids.count(MASK), sum(noised.removed), len(noised.ids)))
    masks, removed, length = np.mean(found, axis=0)
    assert masks == pytest.approx(17, abs=0.3)
    assert removed == pytest.approx(69, abs=1)
    assert length == pytest.approx(205, abs=1)


def lined_up(original: list[int], noised: list[int]) -> bool:
    """The noised ids are the original ones in order, with spans of any length (zero, too) behind MASKs."""
    reachable = {0}
    for token in noised:
        if token == MASK:
            reachable = set(range(min(reachable), len(original) + 1))
        else:
            reachable = {at + 1 for at in reachable if at < len(original) and original[at] == token}
        if not reachable:
            return False
    return True


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 2]), max_size=60), st.integers(0, 2**32), st.sampled_from([0.0, 0.15, 0.3, 1.0]))
def test_what_always_holds(ids: list[int], seed: int, ratio: float) -> None:
    before = list(ids)
    noised = infill(ids, word_starts=WORD_STARTS, mask_id=MASK, draw=np.random.default_rng(seed), mask_ratio=ratio)
    words = ids.count(1)
    budget = math.ceil(round(words * ratio, 6))
    assert ids == before and len(noised.removed) == len(ids)
    kept = [token for token, gone in zip(ids, noised.removed, strict=True) if not gone]
    assert [token for token in noised.ids if token != MASK] == kept
    assert lined_up(ids, noised.ids)
    assert noised.ids.count(MASK) > 0 if budget else noised.ids == ids
    # Whole words: overlaps can only make it fewer than the budget, and a word's tail never stays behind without its head.
    assert sum(gone for token, gone in zip(ids, noised.removed, strict=True) if token == 1) <= budget
    for left, right, token in zip(noised.removed[:-1], noised.removed[1:], ids[1:], strict=True):
        assert not (token == 2 and left != right)
    assert not any(noised.removed[: ids.index(1) if 1 in ids else len(ids)])  # nothing before the first word


def test_one_mask_per_span_and_all_words() -> None:
    """With everything masked, spans of the full budget leave one MASK per run of removed words."""
    draw = np.random.default_rng(3)
    for _ in range(50):
        noised = infill([1, 2] * 20, word_starts=WORD_STARTS, mask_id=MASK, draw=draw)
        runs = sum(gone and not before for before, gone in zip([False, *noised.removed[:-1]], noised.removed, strict=True))
        assert runs >= 1 and noised.ids.count(MASK) >= runs


def test_same_generator_state_same_noise() -> None:
    first, second = (infill([1, 2] * 30, word_starts=WORD_STARTS, mask_id=MASK, draw=np.random.default_rng(5)) for _ in range(2))
    assert first == second
