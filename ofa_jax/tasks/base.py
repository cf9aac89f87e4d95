"""What a task is: a value that turns one annotated item of a record into a source and a target made of typed parts.

A *row* of a mixture (`SourceConfig.row`) names the item kind it draws and the tasks made of it, as in OFA's pretraining: a caption
makes captioning and matching, a question VQA and matching, a region grounding and grounded captioning; all of them share the
picture. `tasks/table.py` holds both literal tables. Strings follow the official code to the space: the leading space of every
instruction and target is significant for byte-level BPE.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ofa_jax.data.records import Box, Caption, DetectedObject, Question, Region
from ofa_jax.vocab.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Words:
    """Text, encoded by the tokeniser exactly as it stands."""

    text: str
    from_record: bool = False  # text of the record: it must hold a word, and is cut at a word where the sequence is too long


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Ids that are already encoded (noised text)."""

    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Location:
    """A box in pixels of the network input; becomes four bin ids x0 y0 x1 y1."""

    box: Box


@dataclasses.dataclass(frozen=True)
class ImageCodes:
    """Image codes in raster order; become code ids."""

    codes: tuple[int, ...]


Part = Words | Pieces | Location | ImageCodes

# What the decoder reads before it answers (official `prompt_type`): nothing; the source (`prev_output`); the source and its EOS, behind
# which the answer is one token and no EOS follows (`src`).
Prompt = Literal["none", "source", "source_eos"]


@dataclasses.dataclass(frozen=True)
class Objects:
    """The item of a detection row: every object of the picture, boxes in network input pixels, in file order."""

    objects: tuple[DetectedObject, ...]


@dataclasses.dataclass(frozen=True)
class Codes:
    """The item of an image infilling row."""

    codes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Passage:
    """The item of a text infilling row."""

    text: str


@dataclasses.dataclass(frozen=True)
class Statement:
    """The item of a visual entailment row: does the picture, which the premise describes, imply the hypothesis?"""

    premise: str  # empty: the picture alone
    hypothesis: str
    answer: str  # entailment, neutral or contradiction


@dataclasses.dataclass(frozen=True)
class Texts:
    """The item of a row of labelled texts."""

    text: str
    text2: str  # empty where there is no second text
    answer: str  # the name of a label, or the text to be written


@dataclasses.dataclass(frozen=True)
class Painting:
    """The item of an image generation row."""

    caption: str
    codes: tuple[int, ...]  # of the whole picture


# Boxes inside items are already those of the network input: the pipeline transforms picture and boxes together.
Item = Caption | Question | Region | Objects | Codes | Passage | Statement | Texts | Painting


@dataclasses.dataclass(frozen=True)
class Example:
    """One training or evaluation sequence before it is encoded to ids."""

    task: str
    source: tuple[Part, ...]
    target: tuple[Part, ...]
    confidence: float = 1.0
    code_mask: bool = False
    hole: bool = False  # the picture's central square is hidden
    no_loss_prefix: int = 0  # target tokens at the start that carry no loss (CC12M captions: 2)
    scored: tuple[bool, ...] | None = None  # target tokens that teacher-forced evaluation counts; None: all


@dataclasses.dataclass(frozen=True)
class Negatives:
    """What negatives are drawn from; made at preparation, loaded once, read only. Empty tuples are an error when drawn from."""

    captions: tuple[str, ...] = ()  # de-duplicated captions of the training set
    objects: tuple[str, ...] = ()  # object words for swaps
    answers: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # answer kind -> answers; has "other"


@dataclasses.dataclass(frozen=True)
class TaskContext:
    """Everything a task may read beside its item."""

    tokenizer: Tokenizer
    negatives: Negatives
    dataset: str
    source_len: int
    target_len: int
    train: bool = True
    question_objects: int = 0  # as `DataConfig.question_objects`


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of the table. `build(item, draw, context)` is pure: the same generator state gives the same example."""

    name: str
    build: Callable[[Any, np.random.Generator, TaskContext], Example]  # its item is the one kind of `Item` that its rows have
    output: Literal["text", "box", "objects", "codes"]  # how predicted ids are read back
    scoring: Literal["free", "teacher_forced"]  # how evaluation runs the decoder
    metrics: tuple[str, ...]  # names in the evaluator's table; the first is the headline figure
    prompt: Prompt = "none"
    answers: tuple[str, ...] = ()  # all that may be answered, where that is known without data
