"""easy-VQA: real questions on pictures of one coloured shape each, from the pip package `easy-vqa` (Victor Zhou, MIT).

One record is one picture with all its questions. The official test split stays apart; validation is cut from train by picture.
"""

from __future__ import annotations

import dataclasses
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import easy_vqa

from ofa_jax.data.records import ImageRecord, Question
from ofa_jax.prepare.builders import base

ANSWERS = {
    "yes/no": ("yes", "no"),
    "shape": ("circle", "rectangle", "triangle"),
    "color": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
}
_KIND = {answer: kind for kind, answers in ANSWERS.items() for answer in answers}


@dataclasses.dataclass(frozen=True)
class EasyVqaOptions(base.Options):
    """`max_images` cuts each official split (0: all); one picture in `validation_every` of train goes to validation."""

    max_images: int = 0
    validation_every: int = 16


def png_size(data: bytes) -> tuple[int, int]:
    """Returns (width, height) in pixels from a PNG header (PNG specification, section 11.2.2)."""
    return struct.unpack(">II", data[16:24])


class EasyVqa(base.RecordBuilder):
    """4,000 training pictures (less validation) and 1,000 official test pictures, 64x64."""

    name = "easy_vqa"
    DESCRIBED = base.Described(
        record="image",
        source="pip package easy-vqa 1.0, https://github.com/vzhou842/easy-VQA",
        licence="MIT, Copyright Victor Zhou",
        notes=(
            "split test is the official one, untouched; validation is cut from the official train split by picture",
            "a question's kind follows from its answer: yes/no, shape or color",
            "a question's id is its place in the official files, those of test after those of train",
        ),
    )
    options: EasyVqaOptions

    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    def records(self, split: str) -> Iterator[ImageRecord]:
        official = "test" if split == "test" else "train"
        questions = easy_vqa.get_test_questions() if split == "test" else easy_vqa.get_train_questions()
        paths = easy_vqa.get_test_image_paths() if split == "test" else easy_vqa.get_train_image_paths()
        first_id = len(easy_vqa.get_train_questions()[0]) if split == "test" else 0  # one id for one question, whatever the split
        by_image: dict[int, list[Question]] = defaultdict(list)
        for question_id, (question, answer, image) in enumerate(zip(*questions, strict=True), start=first_id):
            by_image[image].append(Question(question, answer, 1.0, _KIND[answer], question_id))
        for image in sorted(by_image)[: self.options.max_images or None]:
            held_out = image % self.options.validation_every == self.options.validation_every - 1
            if split != "test" and held_out != (split == "validation"):
                continue
            data = Path(paths[image]).read_bytes()
            width, height = png_size(data)
            yield ImageRecord(f"{official}/{image}", self.name, data, width, height, questions=tuple(by_image[image]))

    def negatives(self) -> dict[str, Any]:
        answers = {kind: list(values) for kind, values in ANSWERS.items()}
        return {"captions": [], "objects": [], "answers": answers | {"other": easy_vqa.get_answers()}}
