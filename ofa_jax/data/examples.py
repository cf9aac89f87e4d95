"""A record -> the bytes of its Example: the same record, the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ofa_jax.data.example_message import Example
from ofa_jax.data.records import COLUMNS, OBJECT_SEPARATOR, ImageRecord, LabelledText, Record, TextRecord


def serialize(record: Record) -> bytes:
    """Returns the serialized Example of a record, by the schema of `data.records`; fields are in the order of their names."""
    example = Example()
    values = _values(record)
    for name, column in COLUMNS[kind_of(record)].items():
        feature = example.features.feature[name]
        if column in ("text", "image"):
            feature.bytes_list.value.extend(value if isinstance(value, bytes) else value.encode() for value in values[name])
        elif column in ("float", "box"):
            feature.float_list.value.extend(values[name])
        else:
            feature.int64_list.value.extend(values[name])
        feature.SetInParent()
    return example.SerializeToString(deterministic=True)


def kind_of(record: Record) -> str:
    """Returns the kind of a record, a key of `data.records.FEATURES`."""
    if isinstance(record, LabelledText):
        return "labelled_text"
    return "text" if isinstance(record, TextRecord) else "image"


def _values(record: Record) -> dict[str, Iterable[Any]]:
    if isinstance(record, LabelledText):
        texts = {"record_id": record.record_id, "text": record.text, "text2": record.text2, "answer": record.answer}
        return {name: [text] for name, text in texts.items()}
    if isinstance(record, TextRecord):
        return {"record_id": [record.record_id], "text": [record.text]}
    assert isinstance(record, ImageRecord)
    questions = record.questions
    return {
        "record_id": [record.record_id],
        "image": [record.image],
        "width": [record.width],
        "height": [record.height],
        "captions/text": [caption.text for caption in record.captions],
        "captions/objects": [OBJECT_SEPARATOR.join(caption.objects) for caption in record.captions],
        "regions/text": [region.text for region in record.regions],
        "regions/box": [edge for region in record.regions for edge in region.box],
        "questions/question": [question.question for question in questions],
        "questions/answer": [question.answer for question in questions],
        "questions/confidence": [question.confidence for question in questions],
        "questions/kind": [question.kind for question in questions],
        "questions/question_id": [question.question_id for question in questions],
        "questions/num_answers": [len(question.answers) for question in questions],
        "questions/num_targets": [len(question.targets) for question in questions],
        "questions/objects": [OBJECT_SEPARATOR.join(question.objects) for question in questions],
        "answers/text": [answer for question in questions for answer in question.answers],
        "targets/text": [target.answer for question in questions for target in question.targets],
        "targets/weight": [target.weight for question in questions for target in question.targets],
        "objects/label": [found.label for found in record.objects],
        "objects/box": [edge for found in record.objects for edge in found.box],
        "codes": [] if record.codes is None else record.codes.tolist(),
    }
