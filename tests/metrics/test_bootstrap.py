"""The interval: seeded, about as wide as theory says, and over records."""

import numpy as np
import pytest

from ofa_jax.metrics.accuracy import accuracy
from ofa_jax.metrics.bootstrap import interval_95
from ofa_jax.metrics.cider import cider
from ofa_jax.metrics.measured import mean


def test_interval_of_a_share_is_that_of_the_binomial():
    measured = mean(np.arange(400) % 4 == 0)
    low, high = interval_95(measured, num_samples=2_000, seed=1)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - half, abs=0.01)
    assert high == pytest.approx(0.25 + half, abs=0.01)


def test_interval_is_repeatable_and_needs_no_memory_for_all_resamples():
    measured = mean(np.random.default_rng(0).random(30_000))
    assert interval_95(measured, num_samples=300, seed=3) == interval_95(measured, num_samples=300, seed=3)


def test_examples_of_one_record_stay_together():
    """40 records of 25 equal examples carry the information of 40 examples."""
    scores = np.repeat(np.arange(40) % 2, 25).astype(float)
    records = [f"r{i // 25}" for i in range(1000)]
    low, high = interval_95(mean(scores), records=records)
    alone = interval_95(mean(scores))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 40), rel=0.15)
    assert high - low > 3 * (alone[1] - alone[0])


def test_degenerate_cases():
    assert interval_95(accuracy(["a"] * 5, ["a"] * 5)) == (1.0, 1.0)
    low, high = interval_95(cider(["a cat", "a dog"], [["a cat"], ["the dog runs"]]), num_samples=50)
    assert low <= high
    with pytest.raises(ValueError, match="eval.bootstrap_samples: found 0"):
        interval_95(mean(np.ones(3)), num_samples=0)
    with pytest.raises(ValueError, match="found 1 record names for 3 examples"):
        interval_95(mean(np.ones(3)), records=["a"])
