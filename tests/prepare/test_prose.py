from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ofa_jax.prepare.builders import prose

TOPICS_ONLY = prose.ProseOptions(docstrings=False)


def test_code_tables_and_headings_are_left_out() -> None:
    text = (
        "Heading\n*******\n\nThe *first* paragraph says something about names and\nvalues of things.\n\n   >>> code()\n   3\n\n"
        "   name ::= rule\n\n* A bullet says that the list is one of the things that exist."
    )
    assert list(prose.paragraphs(text)) == [
        "The *first* paragraph says something about names and values of things.",
        "A bullet says that the list is one of the things that exist.",
    ]


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("The “*name*” isn’t  here (see section X).", "the name isn't here."),
        ("`a_b` or ``c``, [1] ok", "a b or c, ok"),
        ("one/two \u2014 three", "one two - three"),
    ],
)
def test_cleaning_keeps_plain_lower_case_text(raw: str, cleaned: str) -> None:
    assert prose.clean(raw) == cleaned


def test_code_is_not_taken_for_prose() -> None:
    assert prose.is_prose("the name of a thing is bound to the value of it.")
    assert not prose.is_prose("x = f(y, z) + g(1, 2)")
    assert not prose.is_prose("see below.")


def test_passages_are_whole_sentences_of_bounded_length() -> None:
    sentences = [f"sentence {i} has six words here." for i in range(10)]
    made = list(prose.passages(sentences, min_words=12, max_words=20))
    assert all(12 <= len(text.split()) <= 20 for text in made) and " ".join(made).startswith("sentence 0 has")
    assert list(prose.passages(["a b c"], min_words=12, max_words=20)) == []
    assert list(prose.passages(["w " * 50], min_words=12, max_words=20)) == [" ".join(["w"] * 20)]


def test_splits_share_no_section_and_no_near_duplicate() -> None:
    found = prose.split_passages(TOPICS_ONLY)
    assert found == prose.split_passages(TOPICS_ONLY)
    train, validation = found["train"], found["validation"]
    assert len(train) > 600 and len(validation) > 80
    texts = [text for _, text in train + validation]
    assert len(set(texts)) == len(texts)
    sections = [{key.rsplit("/", 1)[0] for key, _ in items} for items in (train, validation)]
    assert not sections[0] & sections[1]
    trained = set().union(*(prose.runs(text) for _, text in train))
    for _, text in validation:
        own = prose.runs(text)
        assert len(own & trained) <= TOPICS_ONLY.max_overlap * len(own)
    assert prose.split_passages(dataclasses.replace(TOPICS_ONLY, max_passages=3))["train"] == train[:3]


def test_docstrings_are_read_from_a_tree_without_tests_and_installed_packages(tmp_path: Path) -> None:
    for name in ("a.py", "test/b.py", "site-packages/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('"""Module."""\ndef f():\n    """Function."""\nx = "\\d"\n')
    assert prose.docstrings(tmp_path) == {"a.py": "Module.\n\nFunction."}
