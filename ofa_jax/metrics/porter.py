"""Porter's stemmer (Porter, An algorithm for suffix stripping, Program 14(3), 1980), with the changes that NLTK makes to it.

They are part of ROUGE's numbers as people publish them: the rouge-score package stems with NLTK. Where a rule is NLTK's, it is said.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

# NLTK's: words that the rules would spoil.
_IRREGULAR = {
    "sky": "sky", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news", "innings": "inning", "inning": "inning",
    "outings": "outing", "outing": "outing", "cannings": "canning", "canning": "canning", "howe": "howe", "proceed": "proceed",
    "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip

# Suffix and what stands for it; of a table the first that the word ends in decides, so longer ones come before their own endings.
_STEP_2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("entli", "ent"), ("eli", "e"),
    ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"), ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"),
    ("ousness", "ous"), ("aliti", "al"), ("iviti", "ive"), ("biliti", "ble"),
    ("bli", "ble"),  # abli -> able in the paper; this one is in Porter's own later programs
    ("fulli", "ful"),  # NLTK's
)  # fmt: skip
_STEP_3 = (("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", ""))
_STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ou", "ism", "ate", "iti", "ous", "ive", "ize",
)  # fmt: skip


def _shape(word: str) -> str:
    """One "v" or "c" a letter, vowel or consonant: y is a vowel after a consonant and a consonant elsewhere."""
    shape = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if vowel else "c"
    return shape


def _measure(stem: str) -> int:
    """Porter's m: how often a vowel is followed by a consonant."""
    return _shape(stem).count("vc")


def _ends_short(stem: str) -> bool:
    """Porter's *o: consonant, vowel, consonant at the end, the last not w, x or y. NLTK's: vowel and consonant alone do too."""
    shape = _shape(stem)
    return (shape.endswith("cvc") and stem[-1] not in "wxy") or shape == "vc"


def _replace(word: str, rules: Sequence[tuple[str, str]], *, least: int) -> str:
    """The word with the first suffix of the table that it ends in replaced, if the rest has a measure of at least `least`."""
    for suffix, other in rules:
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            return rest + other if _measure(rest) >= least else word
    return word


def _without_plural(word: str) -> str:
    """Step 1a."""
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]  # NLTK's: "dies" keeps its e
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _without_past(word: str) -> str:
    """Step 1b: -ed and -ing, and what is put right after them."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]  # NLTK's: "died" keeps its e
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    rest = word[: -len("ed")] if word.endswith("ed") else word[: -len("ing")] if word.endswith("ing") else ""
    if "v" not in _shape(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if rest[-2:-1] == rest[-1] and _shape(rest)[-1] == "c":
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _ends_short(rest) else rest


def _y_to_i(word: str) -> str:
    """Step 1c. NLTK's condition: a consonant before the y that is not the first letter (Porter: a vowel anywhere before)."""
    return word[:-1] + "i" if len(word) > 2 and word[-1] == "y" and _shape(word[:-1])[-1] == "c" else word


def _step_2(word: str) -> str:
    if word.endswith("alli"):  # NLTK's: what is left goes through the step again
        return _step_2(word[:-2]) if _measure(word[:-4]) > 0 else word
    if word.endswith("logi"):  # NLTK's, the l being part of what is measured
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _replace(word, _STEP_2, least=1)


def _step_4(word: str) -> str:
    if word.endswith("ion"):
        return word[:-3] if word[-4:-3] in ("s", "t") and _measure(word[:-3]) > 1 else word
    return _replace(word, [(suffix, "") for suffix in _STEP_4], least=2)


def _tidy(word: str) -> str:
    """Steps 5a and 5b: a last e, and the second of two l."""
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


@functools.cache
def stem(word: str) -> str:
    """Returns the stem of a lower-case word, the same as NLTK's `PorterStemmer` gives; words of one or two letters stay."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _y_to_i(_without_past(_without_plural(word)))
    return _tidy(_step_4(_replace(_step_2(word), _STEP_3, least=1)))
