"""Accuracy, captions and infilling: hand-computed cases and pycocoevalcap beside ours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from ofa_jax.metrics.accuracy import accuracy
from ofa_jax.metrics.bleu4 import bleu4
from ofa_jax.metrics.cider import cider
from ofa_jax.metrics.code_accuracy import code_accuracy
from ofa_jax.metrics.exact_match import exact_match
from ofa_jax.metrics.masked_token_accuracy import masked_positions, masked_token_accuracy
from ofa_jax.metrics.vqa_accuracy import vqa_accuracy
from ofa_jax.metrics.words import normalise

HYPOTHESES = ["A red dog left of a cat.", "a tree", "", "two birds above the green house on a hill", "the cat the cat the cat"]
REFERENCES = [
    ["a red dog left of a cat"],
    ["a tall tree", "a tree on a hill"],
    ["a boat"],
    ["two birds above a green house on the hill", "birds over a house"],
    ["the cat sat on the mat"],
]


def test_accuracy_counts_equal_pairs():
    found = accuracy(["yes", "no", "yes", "no"], ["yes", "yes", "yes", "no"])
    assert found.value == 0.75
    assert found.scores.tolist() == [1, 0, 1, 1]


def test_vqa_accuracy_takes_the_weight_of_the_predicted_answer():
    found = vqa_accuracy(["red", "blue", "two"], [{"red": 1.0, "blue": 0.3}, {"red": 1.0, "blue": 0.3}, {"2": 1.0}])
    assert found.value == pytest.approx((1.0 + 0.3 + 0.0) / 3)


def test_unequal_or_empty_lists_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="accuracy: found 1 predictions and 2 references"):
        accuracy(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="cider: found no examples"):
        cider([], [])


def test_exact_match_ignores_case_and_punctuation_only():
    assert exact_match(["A cat, sitting.", "a cat"], [["a cat sitting"], ["the cat", "cat"]]).scores.tolist() == [1, 0]


def test_words_keep_inner_apostrophes():
    assert normalise(" It's a \"red-hot\" dog, isn't it?") == "it's a red hot dog isn't it"


def test_cider_equals_pycocoevalcap():
    found = cider(HYPOTHESES, REFERENCES)
    gts = {i: [normalise(r) for r in refs] for i, refs in enumerate(REFERENCES)}
    value, scores = Cider().compute_score(gts, {i: [normalise(h)] for i, h in enumerate(HYPOTHESES)})
    assert found.value == pytest.approx(value)
    np.testing.assert_allclose(found.scores, scores)
    assert found.scores[0] == pytest.approx(10.0)  # a hypothesis equal to its only reference


def test_bleu_equals_pycocoevalcap_also_on_a_resample():
    found = bleu4(HYPOTHESES, REFERENCES)
    gts = {i: [normalise(r) for r in refs] for i, refs in enumerate(REFERENCES)}
    value, scores = Bleu(4).compute_score(gts, {i: [normalise(h)] for i, h in enumerate(HYPOTHESES)}, verbose=0)
    assert found.value == pytest.approx(value[3])
    np.testing.assert_allclose(found.scores, scores[3], atol=1e-12)
    counts = np.array([2.0, 0, 0, 3, 1])
    drawn = [0, 0, 3, 3, 3, 4]
    again, _ = Bleu(4).compute_score(
        {i: gts[j] for i, j in enumerate(drawn)}, {i: [normalise(HYPOTHESES[j])] for i, j in enumerate(drawn)}, verbose=0
    )
    assert found.resample(counts[None])[0] == pytest.approx(again[3])


def test_code_accuracy_is_over_positions():
    found = code_accuracy([[1, 2, 3, 4], [5, 5, 5, 5]], [[1, 2, 0, 0], [5, 5, 5, 0]])
    assert found.value == 5 / 8
    assert found.scores.tolist() == [0.5, 0.75]
    with pytest.raises(ValueError, match="example 0: found 1 codes, expected 2"):
        code_accuracy([[1]], [[1, 2]])


def test_masked_positions_of_a_hand_made_noise():
    m = 99
    assert masked_positions([1, m, 4, m], [1, 2, 3, 4, 5], mask_id=m).tolist() == [False, True, True, False, True]
    assert masked_positions([1, m, 2], [1, 2], mask_id=m).tolist() == [False, False]  # an inserted mask hides nothing
    assert masked_positions([m], [7, 8], mask_id=m).tolist() == [True, True]
    assert masked_positions([1, 2], [1, 2], mask_id=m).tolist() == [False, False]
    assert masked_positions([1, 3, m], [1, 2], mask_id=m) is None
    assert masked_positions([2, m, 1], [1, 2], mask_id=m) is None
    assert masked_positions([1, m, 5, m, 2], [1, 2], mask_id=m) is None


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_masked_positions_hide_as_many_tokens_as_were_hidden(original, data):
    hidden = data.draw(st.lists(st.booleans(), min_size=len(original), max_size=len(original)))
    noised = []
    for i, (token, hide) in enumerate(zip(original, hidden, strict=True)):
        if not hide:
            noised.append(token)
        elif i == 0 or not hidden[i - 1]:
            noised.append(99)
    found = masked_positions(noised, original, mask_id=99)
    assert found is not None
    assert found.sum() == sum(hidden)
    assert [t for t, h in zip(original, found, strict=True) if not h] == [t for t in noised if t != 99]


def test_masked_token_accuracy_counts_hidden_tokens_only():
    found = masked_token_accuracy([[1, 2, 3], [4, 5]], [[1, 0, 3], [0, 5]], [[False, True, True], [True, False]])
    assert found.value == 1 / 3
    assert found.scores.tolist() == [0.5, 0.0]
