"""SNLI-VE: does a picture of Flickr30k, with one of its captions as premise, imply a hypothesis? (https://github.com/necla-ml/SNLI-VE)

`snli_ve_train.jsonl`, `snli_ve_dev.jsonl` and `snli_ve_test.jsonl` have one JSON object a line; read are `Flickr30K_ID` (the picture is
`<it>.jpg`), `sentence1` (the premise: the caption that SNLI has), `sentence2` (the hypothesis) and `gold_label`. Pictures are those of
Flickr30k, in one folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption, ImageRecord, Question, RecordError
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Progress
from ofa_jax.prepare.layouts.gathered import Gathered, by_number, one_file, one_of
from ofa_jax.prepare.layouts.json_arrays import field
from ofa_jax.prepare.layouts.picture_names import flickr30k_picture
from ofa_jax.prepare.layouts.streams import text_lines

LABELS = ("entailment", "neutral", "contradiction")
KIND = "entailment"  # of its questions


@dataclasses.dataclass(frozen=True)
class SnliVe(Gathered):
    """One record for each picture and premise, `<picture>/<premise>`, premises of a picture counted from 0 in the file's order.

    Its caption is the premise; each of its questions is a hypothesis, answered by the name of the label. Hypotheses with another label
    ("-": the people did not agree) are left out and listed.
    """

    split: str = "train"  # or dev, test: all three have labels
    pictures: str = "flickr30k-images"  # folder below the source

    PAGE: ClassVar[str] = "https://github.com/necla-ml/SNLI-VE"

    def __post_init__(self) -> None:
        one_of(self, "split", ("train", "dev", "test"))

    def picture_key(self, record_id: str) -> str:
        """Returns Flickr30k's name of the picture."""
        return flickr30k_picture(record_id.partition("/")[0])

    def pictures_in(self, progress: Progress) -> Iterator[Annotated]:
        """Yields every picture once for each of its premises. All texts are held: about 150 MB for the 529,527 pairs of train."""
        path = one_file(self, f"snli_ve_{self.split}.jsonl", f"*/snli_ve_{self.split}.jsonl")
        pairs: dict[str, dict[str, list[Question]]] = {}
        for number, (_, line) in enumerate(text_lines(path), 1):
            if not line.strip():
                continue
            raw = _object(path, number, line)
            picture, premise, hypothesis, label = (
                field(raw, name, str, path=path, of=f"line {number}") for name in ("Flickr30K_ID", "sentence1", "sentence2", "gold_label")
            )
            questions = pairs.setdefault(picture.strip().removesuffix(".jpg"), {}).setdefault(premise.strip(), [])
            questions.append(Question(hypothesis.strip(), label.strip(), kind=KIND))
        progress(f"{self.dataset}: {sum(map(len, pairs.values())):,} premises of {len(pairs):,} pictures")
        for picture in sorted(pairs, key=by_number):
            for place, (premise, questions) in enumerate(pairs[picture].items()):
                yield Annotated(f"{picture}/{place}", f"{self.pictures}/{picture}.jpg", captions=(Caption(premise),), questions=questions)

    def read(self, item: Input) -> Iterator[Found]:
        """Yields the records of one part; a hypothesis with another label is a `RecordError` of reason "label" in its place."""
        for found in super().read(item):
            if isinstance(found, ImageRecord):
                yield from labelled(found, LABELS)
            else:
                yield found


def labelled(record: ImageRecord, labels: tuple[str, ...]) -> Iterator[Found]:
    """Yields a `RecordError` for every question of `record` whose answer is not of `labels`, then the record with the others; one of
    reason "empty" where none is left."""

    def error(reason: str, name: str, found: str, expected: str) -> RecordError:
        return RecordError(dataset=record.dataset, record=record.record_id, reason=reason, field=name, found=found, expected=expected)

    for number, question in enumerate(record.questions):
        if question.answer not in labels:
            yield error("label", f"questions[{number}].answer", repr(question.answer[:40]), " or ".join(labels))
    if not record.captions:
        yield error("empty", "captions", "no premise", "one")
        return
    kept = tuple(question for question in record.questions if question.answer in labels)
    if kept:
        yield dataclasses.replace(record, questions=kept)
    else:
        yield error("empty", "questions", "no hypothesis with a label", "at least one")


def _object(path: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: line {number}: found {line[:40]!r} ({error}), expected a JSON object") from None
    if not isinstance(raw, dict):
        raise DataError(f"{path}: line {number}: found {type(raw).__name__} {line[:40]!r}, expected a JSON object")
    return raw
