"""The simple word split that text metrics share; no Java tokeniser is needed, so numbers are not those of the PTB tokeniser."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers of `text` in order; punctuation separates and is dropped, an apostrophe inside a word stays."""
    return _WORD.findall(text.lower())


def normalise(text: str) -> str:
    """`split_words` joined by single spaces: the form in which texts are compared."""
    return " ".join(split_words(text))
