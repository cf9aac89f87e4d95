"""Text normalisation of OFA's pretraining. Word limits count words, not tokens."""

from __future__ import annotations

import re

SOURCE_WORDS = 80  # of a caption or question in an instruction; with the next, the pretraining scripts' max_src/tgt_length
TARGET_WORDS = 30  # of a caption to be written

_LEADING = ",.!?*#:;~"
_SPACES = re.compile(r"\s{2,}")


def _tidy(text: str, max_words: int) -> str:
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    words = text.split(" ")
    return text if len(words) <= max_words else " ".join(words[:max_words])


def pre_caption(caption: str, max_words: int) -> str:
    """Lower-cased caption without leading punctuation, `-` and `/` as spaces, `<person>` as `person`, cut to `max_words` words.

    Follows `pre_caption` of the official code step by step; may return an empty string.
    """
    caption = caption.lower().lstrip(_LEADING).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return _tidy(caption, max_words)


def pre_question(question: str, max_words: int) -> str:
    """As `pre_caption`, without the rule for `<person>` (`pre_question` of the official code)."""
    return _tidy(question.lower().lstrip(_LEADING).replace("-", " ").replace("/", " "), max_words)
