"""GQA: questions made from scene graphs (https://cs.stanford.edu/people/dorarad/gqa/download.html).

`train_balanced_questions.json` is one JSON object of question id -> question, with `imageId`, `question`, `answer` and `types`; pictures
are `images/<imageId>.jpg`, most of them Visual Genome's under its ids.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Question
from ofa_jax.prepare.layouts.base import Annotated, Progress
from ofa_jax.prepare.layouts.gathered import Gathered, by_number, one_file, one_of
from ofa_jax.prepare.layouts.json_arrays import field, members
from ofa_jax.prepare.layouts.picture_names import visual_genome_picture


@dataclasses.dataclass(frozen=True)
class Gqa(Gathered):
    """The balanced questions of GQA, which are those that OFA pretrains on; one record a picture, named by `imageId`.

    `kind` is the detailed type of a question ("relS", "material"): answers to one are of one sort, as negatives need them. The structural
    types are only five, and "query" among them mixes colours with places. Questions for a count are no kind of their own, so no count is
    moved by one. Ids of questions lose their leading zeros, as they are numbers here: the official ones are filled up to eight digits.
    """

    split: str = "train"  # or "val", "testdev"

    PAGE: ClassVar[str] = "https://cs.stanford.edu/people/dorarad/gqa/download.html"

    def __post_init__(self) -> None:
        one_of(self, "split", ("train", "val", "testdev"))

    def picture_key(self, record_id: str) -> str:
        """Returns Visual Genome's name of the picture, or GQA's own for the others ("n161313")."""
        return visual_genome_picture(record_id) if record_id.isdigit() else f"gqa/{record_id}"

    def pictures_in(self, progress: Progress) -> Iterator[Annotated]:
        """Yields every picture with a balanced question. All questions are held: about 400 MB for the 943,000 of the training split."""
        name = f"{self.split}_balanced_questions.json"
        path = one_file(self, name, f"questions/{name}", f"questions1.*/{name}")
        questions: dict[str, list[Question]] = {}
        seen: set[int] = set()
        for key, raw in members(path):
            of = f"question {key}"
            if not (key.isascii() and key.isdigit()):
                raise DataError(f"{path}: found the question id {key!r}, expected digits")
            number = int(key)
            if number in seen:
                raise DataError(f"{path}: found the question id {number} twice, expected every id once")
            seen.add(number)
            kind = field(field(raw, "types", dict, path=path, of=of), "detailed", str, path=path, of=f"{of}: types")
            questions.setdefault(field(raw, "imageId", str, path=path, of=of), []).append(
                Question(
                    field(raw, "question", str, path=path, of=of),
                    sys.intern(field(raw, "answer", str, path=path, of=of)),
                    kind=sys.intern(kind),
                    question_id=number,
                )
            )
        progress(f"{self.dataset}: {len(seen)} questions of {len(questions)} pictures")
        for image in sorted(questions, key=by_number):
            yield Annotated(image, f"images/{image}.jpg", questions=questions[image])
