"""How many tokens the sequences of a record have: what length classes are made from.

A length holds for the record's own text. Where a task draws another one (negatives of matching, noise), a sequence may be longer: it is
then cut at a word, as every sequence is that does not fit its block.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import VocabConfig
from ofa_jax.data.records import ImageRecord, Record, TextRecord
from ofa_jax.data.transforms.image import transform
from ofa_jax.tasks.base import Example, ImageCodes, Item, Location, Negatives, Part, Passage, Pieces, TaskContext, Words
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.tasks.table import ROWS
from ofa_jax.vocab.tokenizer import Tokenizer

LONGEST = 65_535  # lengths are uint16
_NO_LIMIT = 1 << 20
_ANSWER_SLACK = 2  # tokens by which a drawn wrong answer may be longer than the right one without being cut


class _AlwaysPositive:
    """Draws of a task that show the record's own text: matching takes its positive."""

    def random(self) -> float:
        return math.nextafter(1.0, 0.0)


class LengthCounter:
    """Counts the tokens of records of one row kind; with no row kind (""), of no task. Read only, picklable."""

    def __init__(self, row: str, *, dataset: str, vocab: VocabConfig, tokenizer: Tokenizer):
        """Raises ConfigError for a row kind that has no tasks."""
        if row and row not in ROWS:
            raise ConfigError(f"row: found {row!r}, expected one of {', '.join(ROWS)}")
        self.row, self._tokenizer = row, tokenizer
        self._context = TaskContext(tokenizer, Negatives(), dataset, _NO_LIMIT, _NO_LIMIT)
        self._rows = RowBuilder(vocab, tokenizer, {}, transform)
        self._constant: dict[str, int] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the row kind's tasks, the middle axis of the lengths."""
        return tuple(task.name for task in ROWS[self.row]) if self.row else ()

    def count(self, record: Record) -> np.ndarray:
        """Returns the lengths uint16 [tasks, 2]: ids of source (with BOS and EOS) and of target (with EOS), the largest over the items.

        Raises RecordError when the record has no item of the row kind.
        """
        if not self.row:
            return np.zeros((0, 2), np.uint16)
        if self.row in _CODES and isinstance(record, ImageRecord) and record.codes is None:
            record = dataclasses.replace(record, codes=_CODES[self.row])
        items = self._rows.items(record, self.row)
        lengths = [[self._of_example(item, task) for task in range(len(self.tasks))] for item in items]
        return np.minimum(np.max(np.array(lengths), axis=0), LONGEST).astype(np.uint16)

    def _of_example(self, item: Item, task: int) -> tuple[int, int]:
        if isinstance(item, Passage):
            return self._of_passage(item)
        example: Example = ROWS[self.row][task].build(item, cast(Any, _AlwaysPositive()), self._context)
        slack = _ANSWER_SLACK if example.task == "matching" and self.row == "question" else 0
        return self._tokens(example.source) + 2 + slack, self._tokens(example.target) + 1

    def _of_passage(self, item: Passage) -> tuple[int, int]:
        """The passage is known, its noise is drawn: 0.3 of the words go and each span leaves one MASK, so that about 205 of 256 tokens are
        left. The length holds for nearly all draws."""
        example = ROWS["text_infilling"][0].build(item, np.random.default_rng(0), self._context)
        target = self._tokens(example.target)
        words = example.source[0], example.source[-1]
        return self._tokens(words) + 2 + min(target + 1, math.ceil(_NOISED_SHARE * target) + _NOISED_SLACK), target + 1

    def _tokens(self, parts: tuple[Part, ...]) -> int:
        return sum(self._part(part) for part in parts)

    def _part(self, part: Part) -> int:
        if isinstance(part, Words):
            if part.from_record:
                return len(self._tokenizer.encode(part.text))
            if part.text not in self._constant:
                self._constant[part.text] = len(self._tokenizer.encode(part.text))
            return self._constant[part.text]
        if isinstance(part, Location):
            return 4
        return len(part.codes) if isinstance(part, ImageCodes) else len(part.ids) if isinstance(part, Pieces) else 0


# Stand in for those that the code stage makes later: OFA's 16 x 16 of a central square, and 32 x 32 of a whole picture of 256 px.
_CODES = {"image_infilling": np.zeros(256, np.int32), "painting": np.zeros(1_024, np.int32)}
_NOISED_SHARE = 0.82
_NOISED_SLACK = 14


def texts_for_negatives(record: Record) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Returns a record's captions, object words and (kind, answer) pairs: what wrong captions and answers are drawn from."""
    if isinstance(record, TextRecord):
        return [], [], []
    assert isinstance(record, ImageRecord)
    captions = [caption.text for caption in record.captions]
    objects = [word for caption in record.captions for word in caption.objects]
    return captions, objects, [(question.kind, question.answer) for question in record.questions]
