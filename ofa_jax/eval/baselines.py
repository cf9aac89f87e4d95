"""The baseline of every evaluation set, learned from the training split of the same dataset."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.config.rows import CODE_AREAS
from ofa_jax.config.schema import SourceConfig
from ofa_jax.data.records import Box, ImageRecord, Question, Record, TextRecord
from ofa_jax.eval.codec import PictureCodec
from ofa_jax.eval.collect import Example, Examples, set_generator, without_picture
from ofa_jax.metrics import baselines
from ofa_jax.metrics.baselines import Baseline
from ofa_jax.metrics.words import normalise
from ofa_jax.tasks.base import Negatives, TaskContext, Words
from ofa_jax.tasks.glue import GLUE
from ofa_jax.tasks.rows import EvalExample, RowBuilder

TRAIN_SPLIT = "train"
CODES_ROW = "image_infilling"
_MAX_RECORDS = 20_000  # of a larger training split evenly spaced ones are read
_READ = 1_000  # records read at once
_MAX_PICTURES = 128  # training pictures that "nearest visible code" is judged on
_MAX_TEXTS = 2_000
_UNIT = 1_000.0  # training boxes are compared in thousandths of their picture's sides


class TrainingData:
    """Training records, read once a dataset and kept without their pictures."""

    def __init__(self, open_source: Any, build_row: RowBuilder):
        self._open_source, self.build_row = open_source, build_row
        self._records: dict[tuple[str, str], list[Record]] = {}
        self._indices: dict[str, list[int]] = {}
        self._learned: dict[tuple[str, str], Any] = {}

    def once(self, name: str, dataset: str, learn: Callable[[], Any]) -> Any:
        """What `learn()` returned the first time for this name and dataset: splits of one dataset share a baseline."""
        if (name, dataset) not in self._learned:
            self._learned[name, dataset] = learn()
        return self._learned[name, dataset]

    def records(self, dataset: str, row: str) -> list[Record]:
        """At most 20,000 evenly spaced records of the dataset's training split, without their pictures."""
        key = (dataset, CODE_AREAS.get(row, ""))
        if key not in self._records:
            source = self._source(dataset, row)
            count = min(len(source), _MAX_RECORDS)
            self._indices[dataset] = [i * len(source) // count for i in range(count)]
            found: list[Record] = []
            for start in range(0, count, _READ):
                found += [without_picture(record) for record in source.read(self._indices[dataset][start : start + _READ])]
            self._records[key] = found
        return self._records[key]

    def with_pictures(self, dataset: str, row: str, places: Sequence[int]) -> list[Record]:
        """The records at these places of `records`, read again with their pictures."""
        self.records(dataset, row)
        return self._source(dataset, row).read([self._indices[dataset][place] for place in places])

    def _source(self, dataset: str, row: str) -> Any:
        return self._open_source(SourceConfig(dataset, row, split=TRAIN_SPLIT))  # type: ignore[arg-type]


def predict_baseline(
    examples: Examples, training: TrainingData, *, codec: PictureCodec | None, generated: bool = False
) -> tuple[str, list[Any]]:
    """The baseline's name and its prediction for every example, in the types of `scoring.Outputs`.

    `generated` asks for the baseline of image codes that are generated without seeing true ones.
    """
    task, dataset = examples.task.name, examples.eval_set.dataset
    if task == "matching":
        # No training is needed for the best constant answer: the better of the two on the set itself bounds every constant.
        best = baselines.majority("majority class of the set itself", [e.target_text for e in examples.examples])
        return best.name, [best.predict(None) for _ in examples.examples]
    if task not in _LEARN:
        raise DataError(f"eval set {examples.eval_set.name}: found task {task!r}, expected one that has a baseline")
    task = "generated_codes" if generated and task == CODES_ROW else task
    learn, read = _LEARN[task]
    baseline = training.once(task, dataset, lambda: learn(examples, training.records(dataset, examples.row), training, codec))
    return baseline.name, [read(baseline, example, examples) for example in examples.examples]


def _learn_caption(_: Examples, records: Sequence[ImageRecord], *unused: Any) -> Baseline:
    return baselines.majority("most common training caption", [normalise(c.text) for r in records for c in r.captions])


def _learn_region_text(_: Examples, records: Sequence[ImageRecord], *unused: Any) -> Baseline:
    return baselines.majority("most common training region text", [normalise(region.text) for r in records for region in r.regions])


def _learn_box(_: Examples, records: Sequence[ImageRecord], *unused: Any) -> Baseline:
    return baselines.constant_box([_unit(region.box, r) for r in records for region in r.regions])


def _learn_objects(_: Examples, records: Sequence[ImageRecord], *unused: Any) -> Baseline:
    return baselines.constant_objects([[(o.label, _unit(o.box, r)) for o in r.objects] for r in records if r.objects])


def _learn_answer(_: Examples, records: Sequence[ImageRecord], *unused: Any) -> Baseline:
    """The answer most frequent given the exact question, or given its kind: whichever is right more often on a held-out half of the
    training questions when learned from the other half. `predict(question)` takes a `Question`."""
    questions = [q for r in records for q in r.questions]
    kinds = [("majority answer given the question alone", "question"), ("majority answer of the question's kind", "kind")]

    def learn(some: Sequence[Question]) -> list[Baseline]:
        return [baselines.majority_by_key(name, [getattr(q, f) for q in some], [q.answer for q in some]) for name, f in kinds]

    half, rest = questions[::2], questions[1::2] or questions
    right = [sum(b.predict(getattr(q, field)) == q.answer for q in rest) for b, (_, field) in zip(learn(half), kinds, strict=True)]
    best = int(np.argmax(right))
    baseline, field = learn(questions)[best], kinds[best][1]
    return Baseline(baseline.name, lambda question: baseline.predict(getattr(question, field)))


def _learn_target(examples: Examples, records: Sequence[Any], training: TrainingData, *unused: Any) -> Baseline:
    """The target text that most items of the training data have."""
    context = TaskContext(training.build_row.tokenizer, Negatives(), examples.eval_set.dataset, 0, 0)
    texts = []
    for number, record in enumerate(records):
        for item in training.build_row.items(record, examples.task.name):
            made = examples.task.build(item, set_generator(examples.eval_set.name + "/baseline", number), context)
            texts.append("".join(part.text for part in made.target if isinstance(part, Words)).strip())
    return baselines.majority("most common training target", texts)


def _learn_painting(_: Examples, records: Sequence[ImageRecord], *unused: Any) -> Baseline:
    """The code that most training pictures have at each place."""
    codes = np.stack([record.codes for record in records if record.codes is not None])
    common = [int(np.bincount(column).argmax()) for column in codes.T]
    return Baseline("most common training code of each place", lambda _: common)


def _unit(box: Box, record: Any) -> Box:
    x, y = _UNIT / record.width, _UNIT / record.height
    return Box(box.x0 * x, box.y0 * y, box.x1 * x, box.y1 * y)


def _from_unit(box: Sequence[float], record: Any) -> Box:
    x, y = record.width / _UNIT, record.height / _UNIT
    return Box(box[0] * x, box[1] * y, box[2] * x, box[3] * y)


def _learn_codes(
    examples: Examples, records: Sequence[ImageRecord], training: TrainingData, codec: PictureCodec | None, *, teacher_forced: bool
) -> Baseline:
    coded = [i for i, r in enumerate(records) if r.codes is not None]
    codes = np.stack([records[i].codes for i in coded]) if coded else np.zeros((0, 0), np.int64)
    shown: Sequence[Any] = []
    if codec is not None:
        places = coded[:: max(1, len(coded) // _MAX_PICTURES)][:_MAX_PICTURES]
        shown = training.with_pictures(examples.eval_set.dataset, examples.row, places)
    pictures = [_build(examples, training.build_row, record, i).image for i, record in enumerate(shown)]
    baseline = baselines.infilled_codes(
        codes,
        pictures,
        [r.codes for r in shown],
        None if codec is None else codec.encode,
        stride=1 if codec is None else codec.stride,
        teacher_forced=teacher_forced,
    )
    without = "" if codec is not None else " (neither vqgan.npz nor codebook.npz, so neighbours were not tried)"
    return Baseline(baseline.name + without, baseline.predict)


def _read_codes(baseline: Baseline, example: Example, examples: Examples) -> list[int]:
    return [int(c) for c in baseline.predict((examples.images[example.picture], example.record.codes))]


def _learn_tokens(examples: Examples, records: Sequence[TextRecord], training: TrainingData, *unused: Any) -> Baseline:
    some = records[:: max(1, len(records) // _MAX_TEXTS)]
    return baselines.masked_tokens([_build(examples, training.build_row, r, i).sequence.target_ids for i, r in enumerate(some)])


def _build(examples: Examples, build_row: RowBuilder, record: Record, index: int) -> EvalExample:
    draw = set_generator(examples.eval_set.name + "/baseline", index)
    return build_row.build_one(examples.block, examples.task.name, examples.eval_set.dataset, record, 0, draw)


# Task -> how its baseline is learned, and how the learned one is asked about an example.
_LEARN: dict[str, tuple[Callable[..., Baseline], Callable[[Baseline, Example, Examples], Any]]] = {
    "short_captioning": (_learn_caption, lambda b, e, _: b.predict(None)),
    "answering": (_learn_answer, lambda b, e, _: b.predict(e.item)),
    "image_generation": (_learn_painting, lambda b, e, _: b.predict(None)),
    **dict.fromkeys(
        ("entailment", "classification", "summarisation", *(task.name for task in GLUE)), (_learn_target, lambda b, e, _: b.predict(None))
    ),
    "captioning": (_learn_caption, lambda b, e, _: b.predict(None)),
    "grounded_captioning": (_learn_region_text, lambda b, e, _: b.predict(None)),
    "vqa": (_learn_answer, lambda b, e, _: b.predict(e.item)),
    "grounding": (_learn_box, lambda b, e, _: _from_unit(b.predict(None), e.record)),
    "detection": (_learn_objects, lambda b, e, _: [(label, _from_unit(box, e.record)) for label, box in b.predict(None)]),
    "image_infilling": (functools.partial(_learn_codes, teacher_forced=True), _read_codes),
    "generated_codes": (functools.partial(_learn_codes, teacher_forced=False), _read_codes),
    "text_infilling": (_learn_tokens, lambda b, e, _: [int(t) for t in b.predict(e.sequence.target_ids)]),
}
