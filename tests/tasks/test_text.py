"""Text normalisation, rule by rule."""

from __future__ import annotations

import pytest

from ofa_jax.data.transforms.text import pre_caption, pre_question


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("A Dog.", "a dog."),
        (",.!?*#:;~ ~A dog", "~a dog"),  # leading punctuation goes before the space, and no second time
        ("a well-known black/white cat", "a well known black white"),
        ("<person> and <PERSON>", "person and person"),
        ("a  b \t\n c", "a b c"),
        ("a\tb", "a\tb"),  # one white space stays as it is
        ("a dog \n", "a dog"),
        ("  a dog", "a dog"),
        ("a dog\n", "a dog"),
        ("one two three four five six", "one two three four five"),
        ("...", ""),
    ],
)
def test_captions(raw: str, expected: str) -> None:
    assert pre_caption(raw, 5) == expected


def test_questions_keep_persons() -> None:
    assert pre_question("?Is the <person> left-handed  or/not", 80) == "is the <person> left handed or not"
    assert pre_question("How many dogs are there", 2) == "how many"
