"""The baseline of every evaluation set, learned from the training split of the same dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import SourceConfig
from ofa_jax.data.records import Box, ImageRecord, Record, TextRecord
from ofa_jax.eval.collect import Example, Examples, set_generator, without_picture
from ofa_jax.metrics import baselines
from ofa_jax.metrics.baselines import Baseline
from ofa_jax.metrics.words import normalise
from ofa_jax.tasks.rows import EvalExample, RowBuilder

TRAIN_SPLIT = "train"
_MAX_RECORDS = 20_000  # of a larger training split evenly spaced ones are read
_READ = 1_000  # records read at once
_MAX_PICTURES = 128  # training pictures that "nearest visible code" is judged on
_MAX_TEXTS = 2_000
_UNIT = 1_000.0  # training boxes are compared in thousandths of their picture's sides


class TrainingData:
    """Training records, read once a dataset and kept without their pictures."""

    def __init__(self, open_source: Any, build_row: RowBuilder):
        self._open_source, self.build_row = open_source, build_row
        self._records: dict[str, list[Record]] = {}
        self._indices: dict[str, list[int]] = {}

    def records(self, dataset: str, row: str) -> list[Record]:
        """At most 20,000 evenly spaced records of the dataset's training split, without their pictures."""
        if dataset not in self._records:
            source = self._source(dataset, row)
            count = min(len(source), _MAX_RECORDS)
            self._indices[dataset] = [i * len(source) // count for i in range(count)]
            found: list[Record] = []
            for start in range(0, count, _READ):
                found += [without_picture(record) for record in source.read(self._indices[dataset][start : start + _READ])]
            self._records[dataset] = found
        return self._records[dataset]

    def with_pictures(self, dataset: str, row: str, places: Sequence[int]) -> list[Record]:
        """The records at these places of `records`, read again with their pictures."""
        self.records(dataset, row)
        return self._source(dataset, row).read([self._indices[dataset][place] for place in places])

    def _source(self, dataset: str, row: str) -> Any:
        return self._open_source(SourceConfig(dataset, row, split=TRAIN_SPLIT))


def load_codebook(data_dir: str | Path) -> np.ndarray | None:
    """The k-means centers of image codes, uint8 [num_codes, s, s, 3], of `data_dir`/codebook.npz; None where there is no such file.

    Raises DataError where the file is not of that form.
    """
    path = Path(data_dir) / "codebook.npz"
    if not path.exists():
        return None
    with np.load(path) as stored:
        if "centers" not in stored:
            raise DataError(f"{path}: found arrays {', '.join(stored.files)}, expected centers")
        centers = stored["centers"]
    if centers.dtype != np.uint8 or centers.ndim != 4 or centers.shape[1] != centers.shape[2] or centers.shape[3] != 3:
        raise DataError(f"{path}: found centers {centers.dtype} {centers.shape}, expected uint8 [num_codes, side, side, 3]")
    return centers


def predict_baseline(examples: Examples, training: TrainingData, *, centers: np.ndarray | None) -> tuple[str, list[Any]]:
    """The baseline's name and its prediction for every example, in the types of `scoring.read_output`."""
    name = examples.task.name
    records = training.records(examples.eval_set.dataset, examples.row)
    if name == "vqa":
        return _questions(examples.examples, records)
    if name == "matching":
        # No training is needed for the best constant answer: the better of the two on the set itself bounds every constant.
        return _constant(baselines.majority("majority class of the set itself", [e.target_text for e in examples.examples]), examples)
    if name == "captioning":
        texts = [normalise(c.text) for r in records for c in r.captions]
        return _constant(baselines.majority("most common training caption", texts), examples)
    if name == "grounded_captioning":
        texts = [normalise(region.text) for r in records for region in r.regions]
        return _constant(baselines.majority("most common training region text", texts), examples)
    if name == "grounding":
        box = baselines.constant_box([_unit(region.box, r) for r in records for region in r.regions])
        return box.name, [_from_unit(box.predict(None), e.record) for e in examples.examples]
    if name == "detection":
        objects = baselines.constant_objects([[(o.label, _unit(o.box, r)) for o in r.objects] for r in records if r.objects])
        return objects.name, [[(label, _from_unit(b, e.record)) for label, b in objects.predict(None)] for e in examples.examples]
    if name == "image_infilling":
        return _codes(examples, records, training, centers)
    if name == "text_infilling":
        return _texts(examples, records, training.build_row)
    raise DataError(f"eval set {examples.eval_set.name}: found task {name!r}, expected one that has a baseline")


def _constant(baseline: Baseline, examples: Examples) -> tuple[str, list[Any]]:
    return baseline.name, [baseline.predict(None) for _ in examples.examples]


def _questions(examples: list[Example], records: Sequence[ImageRecord]) -> tuple[str, list[str]]:
    """The answer most frequent given the exact question, or given its kind: whichever is right more often on a held-out half of the
    training questions when learned from the other half."""
    questions = [q for r in records for q in r.questions]
    kinds = [("majority answer given the question alone", "question"), ("majority answer of the question's kind", "kind")]

    def learn(some: Sequence[Any]) -> list[Baseline]:
        return [baselines.majority_by_key(name, [getattr(q, f) for q in some], [q.answer for q in some]) for name, f in kinds]

    half, rest = questions[::2], questions[1::2] or questions
    right = [sum(b.predict(getattr(q, field)) == q.answer for q in rest) for b, (_, field) in zip(learn(half), kinds, strict=True)]
    best = int(np.argmax(right))
    baseline, field = learn(questions)[best], kinds[best][1]
    return baseline.name, [baseline.predict(getattr(e.item, field)) for e in examples]


def _unit(box: Box, record: ImageRecord) -> Box:
    x, y = _UNIT / record.width, _UNIT / record.height
    return Box(box.x0 * x, box.y0 * y, box.x1 * x, box.y1 * y)


def _from_unit(box: Sequence[float], record: ImageRecord) -> Box:
    x, y = record.width / _UNIT, record.height / _UNIT
    return Box(box[0] * x, box[1] * y, box[2] * x, box[3] * y)


def _codes(
    examples: Examples, records: Sequence[ImageRecord], training: TrainingData, centers: np.ndarray | None
) -> tuple[str, list[list[int]]]:
    coded = [i for i, r in enumerate(records) if r.codes is not None]
    codes = np.stack([records[i].codes for i in coded]) if coded else np.zeros((0, 0), np.int64)
    shown: list[ImageRecord] = []
    if centers is not None:
        places = coded[:: max(1, len(coded) // _MAX_PICTURES)][:_MAX_PICTURES]
        shown = training.with_pictures(examples.eval_set.dataset, examples.row, places)
    pictures = [_build(examples, training.build_row, record, i).image for i, record in enumerate(shown)]
    baseline = baselines.infilled_codes(codes, pictures, [r.codes for r in shown], centers)
    found = []
    for example in examples.examples:
        found.append([int(c) for c in baseline.predict((examples.images[example.picture], example.record.codes))])
    without = "" if centers is not None else " (no codebook.npz, so neighbours were not tried)"
    return baseline.name + without, found


def _texts(examples: Examples, records: Sequence[TextRecord], build_row: RowBuilder) -> tuple[str, list[list[int]]]:
    some = records[:: max(1, len(records) // _MAX_TEXTS)]
    baseline = baselines.masked_tokens([_build(examples, build_row, r, i).sequence.target_ids for i, r in enumerate(some)])
    return baseline.name, [[int(t) for t in baseline.predict(e.sequence.target_ids)] for e in examples.examples]


def _build(examples: Examples, build_row: RowBuilder, record: Record, index: int) -> EvalExample:
    draw = set_generator(examples.eval_set.name + "/baseline", index)
    return build_row.build_one(examples.block, examples.task.name, examples.eval_set.dataset, record, 0, draw)
