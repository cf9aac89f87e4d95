"""The rows of the table of metrics that fine-tuning brought: what they make of answers and summaries as they were decoded."""

import pytest

from ofa_jax.config.errors import ConfigError
from ofa_jax.eval.scoring import METRICS
from ofa_jax.metrics.meteor import JAR_VARIABLE


def test_answers_are_compared_in_lower_case():
    predictions, references = [" Yes", "no", "yes", "no "], [["yes"], ["No"], ["no"], ["no"]]
    assert METRICS["accuracy"](predictions, references, []).value == 0.75
    assert METRICS["mcc"](predictions, references, []).value == pytest.approx(2 / (2 * 1 * 3 * 2) ** 0.5)
    assert METRICS["f1_yes"](predictions, references, []).value == 2 / 3


def test_summaries_are_put_into_gigawords_form():
    """By the form, not by the metric: a bracket is the word lrb, & the word amp, and no 1 is left; of references nothing changes."""
    predictions, references = ["Shares ( up ) 12 & more"], [["shares -lrb- up -rrb- #2 &amp; more"]]
    assert [METRICS[f"gigaword_rouge_{kind}"](predictions, references, []).value for kind in "12l"] == [1, 1, 1]
    # share up 12 more | share lrb up rrb 2 amp more: without the form three words of four and seven.
    assert METRICS["gigaword_rouge_1"](references[0], [predictions], []).value == pytest.approx(6 / 11)


def test_meteor_asks_the_jar_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(JAR_VARIABLE, str(tmp_path / "missing.jar"))
    with pytest.raises(ConfigError, match="metric meteor: found no file"):
        METRICS["meteor"](["a cat"], [["a cat"]], [])
