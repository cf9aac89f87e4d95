"""Prose: plain English sentences about Python, for text infilling: its language reference and its standard library's docstrings.

Every CPython ships both, under the PSF licence (`pydoc_data.topics` and the sources of the library). The text is cleaned of code, tables
and markup, cut into passages of whole sentences, and split by section, so that no section is in two splits.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import platform
import pydoc_data.topics
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ofa_jax.data.records import TextRecord
from ofa_jax.prepare.builders import base

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[a-z\"'(*])", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


@dataclasses.dataclass(frozen=True)
class ProseOptions(base.Options):
    """Words per passage, how many sections go to validation, and how alike two passages may be across the splits."""

    docstrings: bool = True  # False: the language reference alone
    min_words: int = 12
    max_words: int = 36
    validation_every: int = 7
    max_passages: int = 0  # of each split; 0: all
    max_overlap: float = 0.3  # share of a validation passage's 5-word runs that training may hold


def paragraphs(text: str) -> Iterator[str]:
    """Yields the running paragraphs of one topic, on one line each; code, tables, grammar and headings are left out."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.split("\n")
        indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
        joined = " ".join(line.strip() for line in lines)
        if not indents or re.search(r"::=|>>>|\.\.\. |={4,}|-{4,}|\*{4,}|\+--|\|", joined) or min(indents) > 6:
            continue
        joined = re.sub(r"^(\*|\d+\.|-|[\w, ]+ - |:\w+ \w+:)\s*", "", joined)
        if joined.count(" ") >= 6 and joined.rstrip()[-1:] in ".:;":
            yield joined


def clean(text: str) -> str:
    """Returns lower-cased text with quotes and markup taken off: letters, digits, and , . ; : ( ) ' - only."""
    text = text.lower().replace("\u2019", "'").replace("\u201c", '"').replace("\u201d", '"').replace("\u2013", "-").replace("\u2014", " - ")
    text = re.sub(r"\(see [^)]*\)|\[[^\]]*\]", " ", text)
    text = re.sub(r"[\"*`_]+", lambda m: " " if "_" in m.group() else "", text)
    text = re.sub(r"[^a-z0-9,.;:()' -]+", " ", text)
    text = re.sub(r"\s+([,.;:)])", r"\1", re.sub(r"\(\s+", "(", text))
    return re.sub(r"\s+", " ", text).strip()


def is_prose(sentence: str) -> bool:
    """Says whether a cleaned sentence reads as English rather than as code: mostly words, with common function words."""
    tokens = sentence.split()
    plain = [token for token in tokens if _WORD.fullmatch(token.strip(",.;:()"))]
    common = sum(token in _COMMON for token in plain)
    return len(tokens) >= 5 and len(plain) >= 0.9 * len(tokens) and common >= 0.2 * len(tokens)


_COMMON = frozenset(
    ("the", "a", "an", "of", "to", "in", "is", "are", "be", "by", "for", "and", "or", "that", "this", "it", "as", "with", "if", "not", "on")
    + ("from", "which", "can", "when", "will", "may", "must", "has", "have", "at")
)


def passages(sentences: Iterable[str], *, min_words: int, max_words: int) -> Iterator[str]:
    """Yields runs of whole sentences of at most `max_words` words; a longer sentence is cut at a word."""
    held: list[str] = []
    for sentence in sentences:
        words = sentence.split()[:max_words]
        if held and len(held) + len(words) > max_words:
            if len(held) >= min_words:
                yield " ".join(held)
            held = []
        held += words
    if len(held) >= min_words:
        yield " ".join(held)


def docstrings(root: Path) -> dict[str, str]:
    """Returns the docstrings of every module below `root` by its path, sorted, without installed packages and tests."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if _LEFT_OUT.intersection(inside.parts):
            continue
        with warnings.catch_warnings():  # the library's own doubtful escapes
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
        texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        found[inside.as_posix()] = "\n\n".join(text for text in texts if text)
    return found


_LEFT_OUT = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "turtledemo", "ensurepip", "pydoc_data")
)


def documents(*, with_docstrings: bool) -> dict[str, str]:
    """Returns the texts by document name, in a fixed order."""
    topics = {f"topics/{name}": text for name, text in sorted(pydoc_data.topics.topics.items())}
    return topics | (docstrings(Path(sysconfig.get_path("stdlib"))) if with_docstrings else {})


def runs(text: str, n: int = 5) -> set[tuple[str, ...]]:
    """Returns the n-word runs of a text; what two texts share tells how near they are."""
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def split_passages(options: ProseOptions) -> dict[str, list[tuple[str, str]]]:
    """Returns split -> [(record id, text)]; no passage twice, and none in validation that training nearly holds."""
    found: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    seen: set[str] = set()
    for topic, text in documents(with_docstrings=options.docstrings).items():
        # a section is a few paragraphs in a row; whole sections go to one split
        whole = list(paragraphs(text))
        for section in range(0, len(whole), 4):
            sentences = []
            for paragraph in whole[section : section + 4]:
                for sentence in _SENTENCE_END.split(paragraph):
                    cleaned = clean(sentence)
                    if cleaned not in seen and is_prose(cleaned):
                        seen.add(cleaned)
                        sentences.append(cleaned)
            digest = hashlib.sha256(f"{options.seed}/{topic}/{section}".encode()).digest()
            split = "validation" if int.from_bytes(digest[:4], "big") % options.validation_every == 0 else "train"
            for number, passage in enumerate(passages(sentences, min_words=options.min_words, max_words=options.max_words)):
                found[split].append((f"{topic}/{section}/{number}", passage))
    trained = set().union(*(runs(text) for _, text in found["train"]))
    found["validation"] = [
        (key, text) for key, text in found["validation"] if len((own := runs(text)) & trained) <= options.max_overlap * max(1, len(own))
    ]
    return {split: items[: options.max_passages or None] for split, items in found.items()}


class Prose(base.RecordBuilder):
    """Passages of whole sentences, lower-cased."""

    name = "prose"
    DESCRIBED = base.Described(
        record="text",
        source="the running CPython: pydoc_data.topics (https://docs.python.org/3/reference) and the docstrings of its library",
        licence="PSF License Version 2, Copyright Python Software Foundation",
        notes=("lower-cased plain sentences; code, tables, grammar and markup are left out", "split by sections of four paragraphs"),
    )
    options: ProseOptions

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._passages = split_passages(self.options)

    def splits(self) -> tuple[str, ...]:
        return ("train", "validation")

    def records(self, split: str) -> Iterator[TextRecord]:
        for key, text in self._passages[split]:
            yield TextRecord(key, self.name, text)

    def facts(self) -> dict[str, Any]:
        return {
            "python": platform.python_version(),
            "words": {split: sum(len(text.split()) for _, text in v) for split, v in self._passages.items()},
        }
