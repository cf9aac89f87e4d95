"""The official VQAv2 accuracy: answers normalised by its rules, soft agreement with ten human answers.

Rules and tables are those of `vqaEval.py` in GT-Vision-Lab/VQA (`processPunctuation`, `processDigitArticle`, `contractions`, `manualMap`,
`articles`, `periodStrip`, `commaStrip`, `punct`); what looks odd below is odd there and is kept, because leaderboards use it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.measured import Measured, check_same_length, mean

# Apostrophes and colons are none of them.
_PUNCTUATION = r';/[]"{}()=+\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official lookbehind is misspelt and always holds, so a digit before the period protects nothing.
_PERIOD = re.compile(r"\.(?!\d)")
MIN_ANSWERS = 4  # of a question: with fewer no prediction scores 1
_MAX_PERIODS = 32  # the official call gives re.UNICODE, which is 32, where the greatest number of replacements goes
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"}
_NUMBERS |= {"eight": "8", "nine": "9", "ten": "10"}  # nothing above ten
_ARTICLES = frozenset(("a", "an", "the"))
# Words that are recognised with any one of their apostrophes missing. Words that are not here (she'd, we'd, we're, i'm, it's) are not
# restored: their short forms are words of their own, or stand with a capital letter in a table that only sees small ones.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll
    how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in _CONTRACTED.split() for i, letter in enumerate(word) if letter == "'"}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # written the wrong way round in the official table


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalise_answer(answer: str) -> str:
    """The form in which the official evaluation compares answers: punctuation, then numbers, articles and contractions word by word.

    A punctuation mark is deleted everywhere when it stands beside a space somewhere, or when any comma stands between two digits;
    otherwise it becomes a space. Periods go unless a digit follows. Words are lower-cased, zero to ten (and none) become digits, a, an
    and the are dropped, and missing apostrophes of known contractions come back.
    """
    answer = _strip(answer)
    # Both conditions look at the answer as it came, not at what earlier marks have left of it.
    has_number = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        beside_space = mark + " " in answer or " " + mark in answer
        text = text.replace(mark, "" if beside_space or has_number else " ")
    text = _PERIOD.sub("", text, count=_MAX_PERIODS)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    """Mean over examples of the official soft accuracy; `references[i]` are the human answers of question i, ten in VQAv2.

    The accuracy of one example is the mean over the sets that leave one answer out of min(1, matches / 3), so 1, 2, 3, 4 matches of ten
    give 0.3, 0.6, 0.9, 1. Prediction and answers are normalised only where the answers, stripped of outer space, are not all equal:
    where ten people agree, the prediction must be their string exactly, capitals included ("two" is wrong where all say "2").
    (Revision c4e6a0e of the official code, of which copies are in use, always normalises the prediction, and only the punctuation of
    answers that differ.) The official code rounds per cent to two digits; this does not.
    """
    check_same_length("vqa_answers", predictions, references)
    scores = []
    for i, (prediction, answers) in enumerate(zip(predictions, references, strict=True)):
        if len(answers) < MIN_ANSWERS:
            raise ValueError(f"vqa_answers: example {i}: found {len(answers)} answers, expected ten (with fewer than four none scores 1)")
        found, known = _strip(prediction), [_strip(a) for a in answers]
        if len(set(known)) > 1:
            found, known = normalise_answer(found), [normalise_answer(a) for a in known]
        matches = known.count(found)
        # Leaving out one of the matching answers leaves one match fewer.
        left_out = matches * min(1.0, (matches - 1) / 3) + (len(known) - matches) * min(1.0, matches / 3)
        scores.append(left_out / len(known))
    return mean(np.array(scores, np.float64))
