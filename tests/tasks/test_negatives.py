"""How negatives are drawn: shares, inequality, and the cases in which the official code goes wrong."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption, Question
from ofa_jax.data.transforms.text import pre_caption
from ofa_jax.tasks.base import Negatives, TaskContext
from ofa_jax.tasks.negatives import load_negatives, negative_answer, negative_caption
from ofa_jax.tasks.table import TASKS

DRAWS = 4000
CLOSE = 4 * (0.25 / DRAWS) ** 0.5  # four standard deviations of a share


def with_negatives(context: TaskContext, **fields: object) -> TaskContext:
    return dataclasses.replace(context, negatives=dataclasses.replace(context.negatives, **fields))


def shares(draws: list[str]) -> dict[str, float]:
    return {text: count / len(draws) for text, count in Counter(draws).items()}


def test_half_of_the_matches_are_positive(context: TaskContext) -> None:
    draw = np.random.default_rng(0)
    for item in (Caption("a dog", ("dog",)), Question("what?", "dog", 1.0, "animal")):
        examples = [TASKS["matching"].build(item, draw, context) for _ in range(DRAWS)]
        positive = [example for example in examples if example.target[0].text == " yes"]
        assert len(positive) / DRAWS == pytest.approx(0.5, abs=CLOSE)
        assert len({example.source for example in positive}) == 1


def test_objects_are_swapped_in_40_percent(context: TaskContext) -> None:
    draw = np.random.default_rng(1)
    found = shares([negative_caption(Caption("The dog and the hotdog.", ("dog",)), draw, context) for _ in range(DRAWS)])
    # The last object stands in for the word itself, and only whole words are replaced.
    swapped = {text: share for text, share in found.items() if "hotdog" in text}
    assert swapped == {
        "the cat and the hotdog.": pytest.approx(0.2, abs=CLOSE),
        "the tree and the hotdog.": pytest.approx(0.2, abs=CLOSE),
    }
    assert {pre_caption(text, 80) for text in context.negatives.captions} == set(found) - set(swapped)


def test_without_objects_any_other_caption(context: TaskContext) -> None:
    draw = np.random.default_rng(2)
    true = Caption("a red circle, and a dog!")  # the same as one of the captions but for capitals
    found = shares([negative_caption(true, draw, context) for _ in range(DRAWS)])
    assert found == {"two cats on a mat.": pytest.approx(0.5, abs=CLOSE), "a blue sea": pytest.approx(0.5, abs=CLOSE)}


def test_an_object_that_is_not_in_the_caption_gives_another_caption(context: TaskContext) -> None:
    draw = np.random.default_rng(3)
    found = {negative_caption(Caption("the manly woman", ("man",)), draw, context) for _ in range(300)}
    assert found == {pre_caption(text, 80) for text in context.negatives.captions}


def test_captions_that_are_nearly_all_alike(context: TaskContext) -> None:
    alike = with_negatives(context, captions=("a dog",) * 500 + ("a cat",) + ("...",) * 500)
    draw = np.random.default_rng(4)
    assert {negative_caption(Caption("A dog"), draw, alike) for _ in range(20)} == {"a cat"}


def test_answers_of_the_same_kind(context: TaskContext) -> None:
    """With confidence c, an answer of the same kind has probability c - 0.1."""
    draw = np.random.default_rng(5)
    for confidence in (1.0, 0.6, 0.05):
        item = Question("what?", "dog", confidence, "animal")
        found = shares([negative_answer(item, draw, context) for _ in range(DRAWS)])
        same = max(0.0, confidence - 0.1)
        assert found.get("cat", 0.0) == pytest.approx(same, abs=CLOSE)
        # Of "other" the last one is drawn only in place of the answer itself.
        assert found["red"] == pytest.approx((1 - same) / 2, abs=CLOSE) and "table" not in found and "dog" not in found


@pytest.mark.parametrize(("count", "expected"), [("0", {"1"}), ("3", {"2", "4"}), ("10", {"9", "11"})])
def test_counts_are_moved_by_one(count: str, expected: set[str], context: TaskContext) -> None:
    draw = np.random.default_rng(6)
    item = Question("how many?", count, 1.0, "how many")
    found = shares([negative_answer(item, draw, context) for _ in range(DRAWS)])
    assert "-1" not in found and count not in found
    moved = sum(share for answer, share in found.items() if answer in expected - {"1", "2"})
    if count == "10":  # none of these is in the lists: drawn above 0.5 and below 0.9
        assert moved == pytest.approx(0.4, abs=CLOSE)
        assert found["9"] == pytest.approx(0.2, abs=CLOSE)
    assert expected <= set(found)


def test_kinds_without_a_list_and_answers_of_no_kind(context: TaskContext) -> None:
    draw = np.random.default_rng(7)
    for kind in ("other", "unheard"):
        assert {negative_answer(Question("what?", "red", 1.0, kind), draw, context) for _ in range(200)} == {"left", "table"}


def test_one_list_stands_in_for_the_other(context: TaskContext) -> None:
    draw = np.random.default_rng(8)
    only = with_negatives(context, answers={"yes/no": ("yes", "no"), "other": ("yes",)})
    assert {negative_answer(Question("is it?", "yes", 0.3, "yes/no"), draw, only) for _ in range(50)} == {"no"}


def test_nothing_to_draw_is_an_error(context: TaskContext) -> None:
    draw = np.random.default_rng(9)
    empty = dataclasses.replace(context, negatives=Negatives())
    with pytest.raises(DataError, match=r"scenes/negatives\.json: field captions: found none but 'a dog', expected another caption"):
        negative_caption(Caption("a dog"), draw, empty)
    with pytest.raises(DataError, match="field answers: found none but 'dog'"):
        negative_answer(Question("what?", "dog"), draw, empty)
    with pytest.raises(DataError, match="field objects"):
        for _ in range(50):
            negative_caption(Caption("a dog", ("dog",)), draw, with_negatives(context, objects=("dog",)))


def test_loading(tmp_path: Path) -> None:
    assert load_negatives(tmp_path, "prose") == Negatives()
    (tmp_path / "scenes").mkdir()
    path = tmp_path / "scenes" / "negatives.json"
    path.write_text(json.dumps({"captions": ["a dog"], "objects": [], "answers": {"other": ["red"]}}))
    assert load_negatives(tmp_path, "scenes") == Negatives(("a dog",), (), {"other": ("red",)})
    path.write_text(json.dumps({"captions": ["a dog"], "objects": [" "], "answers": {}}))
    with pytest.raises(DataError, match="field objects: found .* expected a list of non-empty strings"):
        load_negatives(tmp_path, "scenes")
    path.write_text(json.dumps({"captions": [], "objects": []}))
    with pytest.raises(DataError, match="field answers: found 'None', expected an object of answer kinds"):
        load_negatives(tmp_path, "scenes")
