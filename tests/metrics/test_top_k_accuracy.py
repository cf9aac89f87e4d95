"""Top-k by hand, ties included, and against a stable sort."""

import numpy as np
import pytest

from ofa_jax.metrics.top_k_accuracy import top_k_accuracy

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0], [-np.inf, 1.0, -np.inf]])


def test_top_k_by_hand():
    assert top_k_accuracy(SCORES, [1, 0, 1]).scores.tolist() == [1, 1, 1]
    assert top_k_accuracy(SCORES, [2, 1, 0]).scores.tolist() == [0, 0, 0]  # of equal scores the lower index comes first
    found = top_k_accuracy(SCORES, [2, 1, 2], k=2)
    assert found.scores.tolist() == [1, 1, 0]
    assert found.value == pytest.approx(2 / 3)
    assert top_k_accuracy(SCORES, [0, 2, 2], k=3).value == 1


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_top_k_is_the_head_of_a_stable_sort(k):
    draw = np.random.default_rng(k)
    scores = draw.integers(0, 4, (200, 8)).astype(np.float32)  # many ties
    labels = draw.integers(0, 8, 200)
    expected = [label in np.argsort(-row, kind="stable")[:k] for row, label in zip(scores, labels, strict=True)]
    assert top_k_accuracy(scores, labels, k=k).scores.tolist() == expected


def test_faults_are_one_sentence():
    with pytest.raises(ValueError, match="found 3 predictions and 2 references"):
        top_k_accuracy(SCORES, [1, 0])
    with pytest.raises(ValueError, match=r"found k = 4, expected 1 to the number of classes \(3\)"):
        top_k_accuracy(SCORES, [1, 0, 1], k=4)
    with pytest.raises(ValueError, match="example 2: found label 3, expected 0 to 2"):
        top_k_accuracy(SCORES, [1, 0, 3])
    with pytest.raises(ValueError, match="example 0: found label -1"):
        top_k_accuracy(SCORES, [-1, 0, 1])
    with pytest.raises(ValueError, match=r"float64 labels \(3,\), expected \[n, classes\] and integers"):
        top_k_accuracy(SCORES, [1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="example 1: found a score that is NaN"):
        top_k_accuracy([[1.0, 2.0], [np.nan, 1.0]], [0, 0])
