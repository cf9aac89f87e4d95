"""Typed parts -> ids that fit the block.

A sequence that is too long loses text of the record, whole words first (a detection target whole objects), never a part of the
instruction: `source_len` and `target_len` are static shapes. The official code does not cut and fails above its 1024 positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import BOS_ID, EOS_ID, VocabConfig
from ofa_jax.data.batch import Sequence
from ofa_jax.data.records import RecordError
from ofa_jax.tasks.base import Example, ImageCodes, Location, Part, Pieces, Prompt, Words
from ofa_jax.vocab.boxes import box_to_bins

_SLACK_PX = 0.5  # a box may stick out of the canvas by this much (rounding of a transform); it is clipped to it


def cut_at_word(ids: Items[int], limit: int, *, word_starts: np.ndarray) -> Items[int]:
    """The first words of `ids`, at most `limit` >= 1 ids; a first word that is longer is cut itself. Nothing is cut from short `ids`."""
    if len(ids) <= limit:
        return ids
    end = limit
    while end > 0 and not word_starts[ids[end]]:
        end -= 1
    return ids[: end or limit]


class Encoder:
    """Encodes the examples of one vocabulary. `encode_text` is `Tokenizer.encode`, or a cache of it, returning a tuple."""

    def __init__(self, *, vocab: VocabConfig, encode_text: Callable[[str], tuple[int, ...]], word_starts: np.ndarray):
        self._vocab, self._encode_text, self._word_starts = vocab, encode_text, word_starts

    def encode(
        self,
        example: Example,
        *,
        task_id: int,
        source_len: int,
        target_len: int,
        dataset: str,
        record: str,
        prompt: Prompt = "none",
    ) -> Sequence:
        """The sequence of `example`: source with BOS and EOS (at most `source_len` ids), target without (with EOS at most `target_len`, and
        no EOS follows it behind `source_eos`).

        Raises RecordError, naming `dataset` and `record`, for content that cannot be used (empty text, a box outside the canvas, a code
        or id out of range, a weight that is not positive), ConfigError when even the instruction does not fit.
        """
        place = _Place(example.task, dataset, record)
        if not (example.confidence > 0 and math.isfinite(example.confidence)):
            place.reject("confidence", "confidence", repr(example.confidence), "a positive finite number")
        ends = prompt != "source_eos"
        source = self._fit(example.source, source_len - 2, field="source_len", found=source_len, place=place)
        target = self._fit(example.target, target_len - ends, field="target_len", found=target_len, place=place)
        return Sequence(
            source_ids=[BOS_ID, *source, EOS_ID],
            target_ids=target,
            confidence=float(example.confidence),
            code_mask=example.code_mask,
            task_id=task_id,
            no_loss_prefix=min(example.no_loss_prefix, len(target)),
            prompt_ids=() if prompt == "none" else tuple(source) if ends else (*source, EOS_ID),
            ends=ends,
        )

    def _fit(self, parts: Items[Part], limit: int, *, field: str, found: int, place: _Place) -> list[int]:
        chunks = [self._part_ids(part, place) for part in parts]
        excess = sum(map(len, chunks)) - limit
        if excess > 0:
            if isinstance(parts[0], Location):
                chunks = _drop_objects(parts, chunks, limit, place)
            else:
                self._shorten(parts, chunks, excess)
            total = sum(map(len, chunks))
            if total > limit:
                raise ConfigError(f"{field}: found {found}, expected at least {found + total - limit} for {place.task} of {place.dataset}")
        return [token for chunk in chunks for token in chunk]

    def _shorten(self, parts: Items[Part], chunks: list[Items[int]], excess: int) -> None:
        """Cuts the texts of the record in `chunks`, longest first, until `excess` ids are gone or one id of each is left."""
        cuttable = [i for i, part in enumerate(parts) if isinstance(part, Words) and part.from_record]
        for i in sorted(cuttable, key=lambda i: -len(chunks[i])):
            before = len(chunks[i])
            chunks[i] = cut_at_word(chunks[i], max(1, before - excess), word_starts=self._word_starts)
            excess -= before - len(chunks[i])
            if excess <= 0:
                break

    def _part_ids(self, part: Part, place: _Place) -> Items[int]:
        if isinstance(part, Words):
            if part.from_record and (not part.text or part.text.isspace()):
                place.reject("empty_text", place.task, repr(part.text), "at least one word")
            return self._encode_text(part.text)
        vocab = self._vocab
        if isinstance(part, Location):
            high = vocab.canvas_px + _SLACK_PX
            if not all(-_SLACK_PX <= p <= high for p in part.box):  # NaN fails too
                box = ",".join(f"{p:g}" for p in part.box)
                place.reject("box_outside", f"{place.task} box", f"{box} px of the network input", f"0 to {vocab.canvas_px} px")
            first = vocab.first_bin_id
            return [first + b for b in box_to_bins(part.box, canvas_px=vocab.canvas_px, num_bins=vocab.num_bins)]
        if isinstance(part, ImageCodes):
            if math.isqrt(len(part.codes)) ** 2 != len(part.codes) or not part.codes:
                place.reject("schema", "codes", f"{len(part.codes)} codes", "a square grid")
            self._check_range(part.codes, vocab.num_codes, "codes", place)
            first = vocab.first_code_id
            return [first + c for c in part.codes]
        if isinstance(part, Pieces):
            if not part.ids:
                place.reject("empty_text", place.task, "no tokens", "at least one word")
            self._check_range(part.ids, vocab.num_text, "token ids", place)
            return part.ids
        raise TypeError(f"part of task {place.task}: found {type(part).__name__}, expected Words, Pieces, Location or ImageCodes")

    def _check_range(self, values: Items[int], end: int, field: str, place: _Place) -> None:
        low, high = min(values), max(values)
        if low < 0 or high >= end:
            place.reject("token_range", field, f"{low} to {high}", f"0 to {end - 1}")


class _Place:
    """Where a content error was found."""

    __slots__ = ("dataset", "record", "task")

    def __init__(self, task: str, dataset: str, record: str):
        self.task, self.dataset, self.record = task, dataset, record

    def reject(self, reason: str, field: str, found: str, expected: str) -> None:
        """Raises RecordError."""
        raise RecordError(dataset=self.dataset, record=self.record, reason=reason, field=field, found=found, expected=expected)


def _drop_objects(parts: Items[Part], chunks: list[Items[int]], limit: int, place: _Place) -> list[Items[int]]:
    """The chunks of the first objects (a location and what follows it) that fit `limit` together; at least one must."""
    kept, total = 0, 0
    ends = [i for i in range(1, len(parts)) if isinstance(parts[i], Location)] + [len(parts)]
    for end in ends:
        size = sum(map(len, chunks[kept:end]))
        if total + size > limit:
            break
        kept, total = end, total + size
    if not kept and len(ends) > 1:
        place.reject("schema", "objects/label", f"a first object of {size} tokens", f"at most {limit}")
    return chunks[:kept] if kept else chunks
