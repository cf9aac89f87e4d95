"""Matthews correlation and F1 of yes and no: by hand, beside the correlation of the answers as numbers, and on resamples."""

import numpy as np
import pytest

from ofa_jax.metrics.bootstrap import interval_95
from ofa_jax.metrics.f1_yes import f1_yes
from ofa_jax.metrics.mcc import mcc

# 4 true yes, 1 false yes, 2 false no, 3 true no.
TRUE = ["yes"] * 6 + ["no"] * 4
FOUND = ["yes"] * 4 + ["no"] * 2 + ["yes"] + ["no"] * 3


def test_by_hand():
    # (4 * 3 - 1 * 2) / sqrt(5 * 6 * 4 * 5); scikit-learn 1.9.1 gives 0.408248290463863 and 0.7272727272727273.
    assert mcc(FOUND, TRUE).value == pytest.approx(10 / np.sqrt(600), abs=1e-15)
    assert f1_yes(FOUND, TRUE).value == 8 / 11
    assert mcc(FOUND, TRUE).scores.tolist() == f1_yes(FOUND, TRUE).scores.tolist() == [1] * 4 + [0] * 3 + [1] * 3
    assert mcc(TRUE, TRUE).value == pytest.approx(1, abs=1e-15) and f1_yes(TRUE, TRUE).value == 1
    assert mcc(["no" if t == "yes" else "yes" for t in TRUE], TRUE).value == pytest.approx(-1, abs=1e-15)


def test_one_answer_alone_has_no_correlation():
    """As scikit-learn decides 0 / 0, and what a majority baseline scores."""
    assert mcc(["yes"] * 10, TRUE).value == mcc(TRUE, ["no"] * 10).value == 0
    assert f1_yes(["no"] * 3, ["no"] * 3).value == 0
    assert f1_yes(["yes"] * 10, TRUE).value == 12 / 16


def _draw(seed, n=300):
    draw = np.random.default_rng(seed)
    true = draw.random(n) < 0.7
    found = np.where(draw.random(n) < 0.8, true, ~true)
    return found, true, lambda answers: ["yes" if a else "no" for a in answers]


@pytest.mark.parametrize("seed", range(3))
def test_correlation_is_pearsons_also_on_a_resample(seed):
    """The correlation of Matthews is Pearson's of the answers as 0 and 1."""
    found, true, words = _draw(seed)
    counts = np.random.default_rng(seed).multinomial(300, np.full(300, 1 / 300), size=5).astype(float)
    correlation, f1 = mcc(words(found), words(true)), f1_yes(words(found), words(true))
    assert correlation.value == pytest.approx(np.corrcoef(found, true)[0, 1], abs=1e-14)
    for row, value, share in zip(counts, correlation.resample(counts), f1.resample(counts), strict=True):
        chosen = np.repeat(np.arange(300), row.astype(int))
        assert value == pytest.approx(np.corrcoef(found[chosen], true[chosen])[0, 1], abs=1e-14)
        precision, recall = true[chosen][found[chosen]].mean(), found[chosen][true[chosen]].mean()
        assert share == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-14)
    low, high = interval_95(correlation, num_samples=200)
    assert low < correlation.value < high


def test_an_answer_that_is_neither_is_wrong():
    assert mcc(["maybe", "", "yes", "no"], ["yes", "no", "yes", "no"]).value == mcc(["no", "yes", "yes", "no"], ["yes", "no"] * 2).value
    assert f1_yes(["maybe", "", "yes", "no"], ["yes", "no", "yes", "no"]).value == 0.5
    with pytest.raises(ValueError, match="mcc: example 1: found reference 'maybe', expected yes or no"):
        mcc(["yes", "no"], ["yes", "maybe"])
    with pytest.raises(ValueError, match="f1_yes: found no examples"):
        f1_yes([], [])
