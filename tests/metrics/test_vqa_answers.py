"""The official VQA normalisation and soft accuracy, by hand: every line of the tables below follows from its published rules."""

import pytest

from ofa_jax.metrics.vqa_answers import _CONTRACTIONS, normalise_answer, vqa_answers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # A mark between letters becomes a space; beside a space it is deleted, and then everywhere.
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),
        ("left-right, up", "left right up"),  # the comma is beside a space, the hyphen is not
        ("yes!", "yes"),
        ("(red) [blue]", "red blue"),
        ('say "hi"', "say hi"),
        ("{a_b}", "b"),  # the article a comes into being
        ("r&b", "r&b"),  # no mark of the list
        ("5:30", "5:30"),
        ("50%", "50%"),
        # A comma between digits makes every mark vanish, its own and others'.
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("red,blue", "red blue"),
        ("10,a/b", "10 b"),  # no digit after the comma
        ("1,2 and t-shirt", "12 and tshirt"),
        # Periods go unless a digit follows; a digit before protects nothing.
        ("st. louis", "st louis"),
        ("u.s.a.", "usa"),
        ("3.5", "3.5"),
        ("3.", "3"),
        (".5", ".5"),
        ("no.5", "no.5"),
        ("5 . 6", "5 6"),
        ("..", ""),
        ("." * 40, "." * 8),  # the official call stops after 32
        # Numbers are words of their own.
        ("Two", "2"),
        ("zero one ten eleven", "0 1 10 eleven"),
        ("none", "0"),
        ("twenty-one", "twenty 1"),
        ("someone", "someone"),
        # Articles.
        ("The cat on A mat", "cat on mat"),
        ("an", ""),
        ("a.", ""),  # the period goes first
        ("theatre", "theatre"),
        # Contractions: one missing apostrophe comes back, two do not.
        ("dont know", "don't know"),
        ("DONT", "don't"),
        ("don't", "don't"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("oclock", "o'clock"),
        ("5 oclock", "5 o'clock"),
        ("twas", "'twas"),
        ("'ow'sat", "'ow's'at"),
        ("yalld've", "yalld've"),
        ("y'alld've", "y'all'd've"),
        ("somebodyd", "somebodyd"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),  # its line of the table is capitalised and never met
        ("its", "its"),
        ("shed", "shed"),
        ("wed", "wed"),
        # White space.
        (" red\nand\tblue  car ", "red and blue car"),
        ("", ""),
    ],
)
def test_normalised_answers(answer, expected):
    assert normalise_answer(answer) == expected


def test_the_contraction_table_is_the_official_one():
    # 120 official entries, without four that are capitalised (Id've I'dve Im Ive) and two that change nothing (let's she's).
    assert len(_CONTRACTIONS) == 120 - 4 - 2
    assert all(key == key.lower() and key != value for key, value in _CONTRACTIONS.items())
    # 17 words with two apostrophes have two entries; 'ow's'at and y'all'd've with three have three.
    assert sum(value.count("'") > 1 for value in _CONTRACTIONS.values()) == 2 * 17 + 2 * 3


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_agreement_with_ten_people(matches, expected):
    answers = ["red"] * matches + ["blue", *(f"colour {i}" for i in range(9 - matches))]
    assert len(answers) == 10
    assert vqa_answers(["red"], [answers]).value == pytest.approx(expected, abs=1e-12)


def test_answers_that_normalise_to_the_same_count_together():
    answers = ["2", "two", "Two.", "the two", "3", "three", "4", "5", "6", "7"]
    found = vqa_answers(["two", "2", "three", "8"], [answers] * 4)
    assert found.scores.tolist() == pytest.approx([1.0, 1.0, 0.6, 0.0])
    assert found.value == pytest.approx(0.65)


def test_where_all_agree_nothing_is_normalised():
    same = ["2 dogs "] * 9 + [" 2 dogs"]  # outer space is stripped before they are compared
    found = vqa_answers(["2 dogs", "two dogs", "2 Dogs", "2 dogs."], [same] * 4)
    assert found.scores.tolist() == [1, 0, 0, 0]
    almost = ["2 dogs"] * 9 + ["2  dogs"]  # ten strings that differ, though not once they are normalised
    assert vqa_answers(["two dogs"], [almost]).value == 1
    assert vqa_answers(["a\tcat"], [["a cat"] * 10]).value == 1


def test_too_few_answers_are_refused():
    with pytest.raises(ValueError, match="vqa_answers: example 1: found 3 answers, expected ten"):
        vqa_answers(["a", "b"], [["a"] * 10, ["b"] * 3])
    with pytest.raises(ValueError, match="vqa_answers: found no examples"):
        vqa_answers([], [])
