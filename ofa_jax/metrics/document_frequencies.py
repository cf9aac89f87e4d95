"""Document frequencies of n-grams, which CIDEr-D weighs words by: counted once over a fixed corpus, stored, read again."""

from __future__ import annotations

import dataclasses
import json
import os
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ofa_jax.config.errors import DataError
from ofa_jax.metrics.words import split_words

MAX_ORDER = 4
END = " eos"  # a word behind every text of the self-critical reward, so that stopping counts (official `scst_reward_criterion`)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def ended(text: str) -> str:
    """Returns a text as the self-critical reward reads it: without ASCII punctuation, with a word for its end."""
    return text.translate(_NO_PUNCTUATION).strip() + END


def ngrams(text: str) -> Counter[str]:
    """How often each n-gram of 1 to 4 words occurs in `text`, words as `split_words` cuts them, joined by one space."""
    words = split_words(text)
    return Counter(" ".join(words[i : i + n]) for n in range(1, MAX_ORDER + 1) for i in range(len(words) - n + 1))


@dataclasses.dataclass(frozen=True)
class DocumentFrequencies:
    """In how many of `ref_len` documents each n-gram occurs. A document is an image: all its references together.

    The name is that of the cached files of the official OFA and CIDEr-D code (`ref_len`, `document_frequency`), where it is a number of
    images too; the formula takes its logarithm.
    """

    ref_len: int
    document_frequency: Mapping[str, int]


def document_frequencies(references: Sequence[Sequence[str]]) -> DocumentFrequencies:
    """The frequencies of a corpus, `references[i]` being the captions of image i."""
    if len(references) == 0:
        raise ValueError("document_frequencies: found no images, expected at least one")
    counts: Counter[str] = Counter()
    for refs in references:
        # In order of appearance, so that the same corpus gives the same file.
        counts.update(dict.fromkeys((gram for ref in refs for gram in ngrams(ref)), 1))
    return DocumentFrequencies(len(references), dict(counts))


def write_frequencies(path: Path, frequencies: DocumentFrequencies) -> None:
    """Writes {"ref_len": int, "document_frequency": {n-gram: int}} as JSON, in one move."""
    partial = path.with_name(path.name + ".partial")
    value = {"ref_len": frequencies.ref_len, "document_frequency": dict(frequencies.document_frequency)}
    partial.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_frequencies(path: Path) -> DocumentFrequencies:
    """Reads what `write_frequencies` wrote. Raises `DataError` where the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}), expected document frequencies for CIDEr-D") from error
    except ValueError as error:  # of JSON, and of UTF-8
        raise DataError(f"{path} does not parse as JSON ({error}), expected document frequencies for CIDEr-D") from error
    if not isinstance(value, dict) or set(value) != {"ref_len", "document_frequency"}:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise DataError(f"{path}: found {str(found)[:60]}, expected an object of ref_len and document_frequency")
    ref_len, counts = value["ref_len"], value["document_frequency"]
    if type(ref_len) is not int or ref_len < 1:
        raise DataError(f"{path}: field ref_len: found {str(ref_len)[:60]!r}, expected a number of images")
    if not isinstance(counts, dict):
        raise DataError(f"{path}: field document_frequency: found {str(counts)[:60]!r}, expected an object of counts")
    for gram, count in counts.items():
        # More images than there are would turn a weight negative.
        if type(count) is not int or not 1 <= count <= ref_len:
            raise DataError(f"{path}: document_frequency of {gram[:60]!r}: found {str(count)[:60]}, expected 1 to ref_len ({ref_len})")
    return DocumentFrequencies(ref_len, counts)
