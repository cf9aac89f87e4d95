"""The form in which OFA compares its summaries of Gigaword: the tokens that its training texts were cut into, put together again.

Gigaword's headlines are in the form of the Penn Treebank (-lrb- for a bracket, `` and '' for quotes, n't by itself) with # for every
digit. The rules are those of UniLM's `fix_tokenization`, which OFA uses (OFA-Sys/OFA, tasks/nlg_tasks/gigaword.py), read for what they do.
"""

from __future__ import annotations

import string

_NAMED = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "&": "&amp;", "<": "&lt;", ">": "&gt;",
}  # fmt: skip
_QUOTES = {'"': ("``", "''"), "'": ("`", "'")}  # opening, closing


def _is_number(token: str) -> bool:
    return all(letter.isdigit() or letter == "," for letter in token)


def _starts_word(token: str) -> bool:
    return token[:1] not in string.punctuation  # nothing is in it as well


def _join(tokens: list[str]) -> list[str]:
    """The tokens with those that belong together joined, brackets and signs named and quotes turned."""
    words: list[str] = []
    is_open = dict.fromkeys(_QUOTES, False)
    joins = False  # whether a dash waits for the second half of its word
    i = 0
    while i < len(tokens):
        token, following, last = tokens[i], "".join(tokens[i + 1 : i + 2]), words[-1] if words else ""
        dash_waits, joins, used = joins, False, 1
        if token in _NAMED:
            words.append(_NAMED[token])
        elif token == "'" and following == "t" and last.endswith("n"):
            words[-1:], used = [last[:-1], "n't"], 2
        elif token == "'" and following in ("s", "d", "ll"):
            words.append(token + following)
            used = 2
        elif token in _QUOTES:
            words.append(_QUOTES[token][is_open[token]])
            is_open[token] = not is_open[token]
        elif tokens[i : i + 3] == [".", ".", "."]:
            words.append("...")
            used = 3
        elif words and following and (
            (token == "," and _is_number(last) and _is_number(following)) or (token == "." and last.isdigit() and following.isdigit())
        ):  # fmt: skip
            words[-1] += token + following
            used = 2
        elif token == "-" and following == "-":
            words.append("--")
            used = 2
        # `last` is looked for as a whole in the row of signs: one sign keeps the dash alone, a word of several like `` does not.
        elif token == "-" and words and last not in string.punctuation and _starts_word(following):
            words[-1] += token
            joins = True
        elif dash_waits and _starts_word(token):
            words[-1] += token
        else:
            words.append(token)
        i += used
    return words


def gigaword_form(text: str) -> str:
    """Returns a prediction as OFA scores it: lower case, tokens joined, "<unk>" as a word, # for the digit 1.

    OFA's data have 1 in place of Gigaword's #. UniLM's rule for "U . N ." looks for capitals, of which there are none here, and is left
    out. References are in this form already; OFA only lower-cases them.
    """
    return " ".join(_join(text.lower().split())).replace("<unk>", " unk").replace("1", "#")
