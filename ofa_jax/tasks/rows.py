"""A record -> one row of a block: one network input and its sequences.

The items of a row kind (captions, questions, regions, ...) are drawn from the record, the picture is transformed once together with
their boxes, and every task of the row kind turns every drawn item into a sequence. All random choices come from the generator that
the caller passes, in this order: items, picture transform, RandAugment (where a block has it), then item by item and task by task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import BlockConfig, SourceConfig, VocabConfig
from ofa_jax.data.batch import Row, Sequence
from ofa_jax.data.pictures import decode_picture
from ofa_jax.data.records import Box, DetectedObject, ImageRecord, LabelledText, Question, Record, RecordError, Region, TextRecord
from ofa_jax.data.transforms.boxes import scale_box
from ofa_jax.data.transforms.image import Picture, enough_for
from ofa_jax.data.transforms.randaugment import rand_augment
from ofa_jax.tasks.base import Codes, Example, Item, Negatives, Objects, Painting, Passage, Statement, Task, TaskContext, Texts
from ofa_jax.tasks.encode import Encoder
from ofa_jax.tasks.glue import GLUE
from ofa_jax.tasks.summarisation import SUMMARISATION
from ofa_jax.tasks.table import ROWS, TASK_NAMES, TASKS
from ofa_jax.vocab.tokenizer import Tokenizer

_CACHED_TEXTS = 1 << 16  # distinct short texts whose ids are kept; the cache starts afresh when it is full
_CACHED_CHARACTERS = 256  # longer texts are not kept
_RAND_AUGMENTED = ("caption", "question")  # row kinds

Transform = Callable[[Any, np.ndarray, Any, int, np.random.Generator], Picture]


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """One sequence for evaluation, with what its prediction is compared to."""

    sequence: Sequence
    image: np.ndarray | None  # uint8 [image_px, image_px, 3]
    hole: bool
    scored: list[bool]  # for every target id: teacher-forced evaluation counts it (text infilling: the hidden ones)
    item: Item  # boxes in pixels of the network input
    example: Example  # the parts before encoding


class RowBuilder:
    """Builds rows of every kind. Read only but for a cache, picklable, safe to call from several threads."""

    def __init__(
        self,
        vocab: VocabConfig,
        tokenizer: Tokenizer,
        negatives: Mapping[str, Negatives],
        transform: Transform,
        train: bool = True,
        *,
        question_objects: int = 0,
    ):
        """`negatives` is by dataset (`tasks.negatives.load_negatives`); `transform` is `data.transforms.image.transform`;
        `question_objects` is `DataConfig.question_objects`.

        Raises ConfigError when the tokeniser does not fit the vocabulary.
        """
        if tokenizer.num_text != vocab.num_text:
            raise ConfigError(f"vocab.num_text: found {vocab.num_text}, expected the tokeniser's {tokenizer.num_text}")
        self._vocab, self._tokenizer, self._negatives = vocab, tokenizer, dict(negatives)
        self._transform, self._train, self._question_objects = transform, train, question_objects
        self._make_caches()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokeniser that texts are encoded with."""
        return self._tokenizer

    def _make_caches(self) -> None:
        self._ids: dict[str, tuple[int, ...]] = {}
        self._contexts: dict[tuple[str, int, int], TaskContext] = {}
        self._encoder = Encoder(vocab=self._vocab, encode_text=self._encode_text, word_starts=self._tokenizer.word_starts)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_ids", "_contexts", "_encoder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_caches()

    def __call__(self, block: BlockConfig, source: SourceConfig, record: Record, draw: np.random.Generator) -> Row:
        """One row of `block` from a record of `source`: a picture of `block.image_px` (none in a text block) and
        `pairs_per_image` * len(ROWS[source.row]) sequences, pair by pair and task by task.

        Items are drawn without replacement while they last, then again from the start; but all sequences of a painting's row are of one
        caption, of which a reward has several pictures drawn. Image infilling is always resized and never
        augmented, because its codes belong to the picture as it is stored; only captions and questions are changed by RandAugment, which
        moves pixels without their boxes. Raises RecordError for content that cannot be used, ConfigError when block, row kind and records
        do not go together.
        """
        items = self.items(record, source.row)
        order = draw.permutation(len(items)).tolist() if len(items) > 1 else [0]
        pairs = block.pairs_per_image
        infilling = source.row == "image_infilling"
        kind = "resize" if infilling else block.augment
        at_least = 0 if infilling or not self._train else enough_for(kind, block.image_px)
        image, chosen = self._picture(block, record, [items[i] for i in order[:pairs]], kind, draw, at_least=at_least)
        if block.rand_augment and image is not None and source.row in _RAND_AUGMENTED:
            image = rand_augment(image, draw)
        tasks = ROWS[source.row]
        sequences = []
        hole = False
        for pair in range(pairs):
            item = chosen[0 if source.row == "painting" else pair % len(chosen)]
            for place, task in enumerate(tasks):
                source_len, target_len = block.lens_of(place)
                example = task.build(item, draw, self._context(source.dataset, source_len, target_len))
                hole = hole or example.hole
                sequences.append(self._encode(example, source_len, target_len, source.dataset, record))
        return Row(image, hole, tuple(sequences))

    def items(self, record: Record, row: str) -> tuple[Item, ...]:
        """All items of `record` for a row kind or a task name, in order, boxes in pixels of the stored picture; never empty.

        Task `matching` reads captions, or questions where a record has no captions. In training an `answering` question with several
        targets is as many items, each with its answer and weight, as the official data has a row for each answer; so within a picture every
        answer comes equally often, and every picture does. Outside training a picture without objects is an item of detection too: what a
        model sees there counts against it, as in COCO's evaluation. Raises RecordError for a record without such items, or whose questions
        lack the objects that the run asks for, ConfigError for an unknown name or when texts are asked of pictures or the reverse.
        """
        names = (row,) if row in TASKS else tuple(task.name for task in ROWS.get(row, ()))
        if not names:
            raise ConfigError(f"row: found {row!r}, expected one of {', '.join(dict.fromkeys((*ROWS, *TASKS)))}")
        task = next((name for name in names if name != "matching"), "matching")
        expected = "text" if task == "text_infilling" else "labelled text" if task in _LABELLED else "image"
        if isinstance(record, TextRecord) and task == "text_infilling":
            return (Passage(record.text),)
        if isinstance(record, LabelledText) and task in _LABELLED:
            return (Texts(record.text, record.text2, record.answer),)
        if expected != "image" or not isinstance(record, ImageRecord):
            found = "labelled text" if isinstance(record, LabelledText) else "text" if isinstance(record, TextRecord) else "image"
            raise ConfigError(f"dataset {record.dataset}: found {found} records, expected {expected} records for {row}")
        field, items = self._of_picture(record, task)
        if not items:
            _reject(record, "schema", field, "none", f"at least one for {row}")
        return items

    def _of_picture(self, record: ImageRecord, task: str) -> tuple[str, tuple[Item, ...]]:
        """The field that a task reads, and its items."""
        codes = () if record.codes is None else tuple(record.codes.tolist())
        if task in ("captioning", "short_captioning", "classification"):
            return "captions", record.captions
        if task == "vqa":
            return "questions", record.questions
        if task == "answering":
            return "questions", self._questions(record)
        if task == "matching":
            return "captions", record.captions or record.questions
        if task in ("grounding", "grounded_captioning"):
            return "regions", record.regions
        if task == "detection":
            return "objects", (Objects(record.objects),) if record.objects or not self._train else ()
        if task == "entailment":
            premise = record.captions[0].text if record.captions else ""
            return "questions", tuple(Statement(premise, question.question, question.answer) for question in record.questions)
        if task == "image_generation":
            return "captions and codes", tuple(Painting(caption.text, codes) for caption in record.captions if codes)
        assert task == "image_infilling", task
        return "codes", (Codes(codes),) if codes else ()

    def _questions(self, record: ImageRecord) -> tuple[Question, ...]:
        if self._question_objects and not all(question.objects for question in record.questions):
            _reject(record, "objects", "questions/objects", "none", f"some, as data.question_objects={self._question_objects} asks")
        if not self._train:
            return record.questions
        return tuple(
            dataclasses.replace(question, answer=answer, confidence=weight)
            for question in record.questions
            for answer, weight in question.targets or ((question.answer, question.confidence),)
        )

    def build_one(
        self, block: BlockConfig, task: str, dataset: str, record: Record, item_index: int, draw: np.random.Generator
    ) -> EvalExample:
        """The sequence of one task on item `item_index` of `items(record, task)`, at the lengths and size of `block`, not augmented.

        Raises as the row builder does, and IndexError for an item that is not there.
        """
        item = self.items(record, task)[item_index]
        image, (item, *_) = self._picture(block, record, [item], "resize", draw)
        example = TASKS[task].build(item, draw, self._context(dataset, block.source_len, block.target_len))
        sequence = self._encode(example, block.source_len, block.target_len, dataset, record)
        scored = list(example.scored) if example.scored is not None else [True] * len(sequence.target_ids)
        return EvalExample(sequence, image, example.hole, scored, item, example)

    def _encode(self, example: Example, source_len: int, target_len: int, dataset: str, record: Record) -> Sequence:
        return self._encoder.encode(
            example,
            task_id=_TASK_IDS[example.task],
            source_len=source_len,
            target_len=target_len,
            dataset=dataset,
            record=record.record_id,
            prompt=TASKS[example.task].prompt,
        )

    def _context(self, dataset: str, source_len: int, target_len: int) -> TaskContext:
        key = (dataset, source_len, target_len)
        context = self._contexts.get(key)
        if context is None:
            negatives = self._negatives.get(dataset, _NO_NEGATIVES)
            context = TaskContext(self._tokenizer, negatives, dataset, source_len, target_len, self._train, self._question_objects)
            self._contexts[key] = context
        return context

    def _encode_text(self, text: str) -> tuple[int, ...]:
        ids = self._ids.get(text)
        if ids is None:
            ids = tuple(self._tokenizer.encode(text))
            if len(text) <= _CACHED_CHARACTERS:
                if len(self._ids) >= _CACHED_TEXTS:
                    self._ids.clear()
                self._ids[text] = ids
        return ids

    def _picture(
        self, block: BlockConfig, record: Record, items: list[Item], kind: str, draw: np.random.Generator, *, at_least: int = 0
    ) -> tuple[np.ndarray | None, list[Item]]:
        """The network input, and the items with their boxes moved; items whose box lies outside the crop are left out."""
        if isinstance(record, TextRecord) or block.stream == "text":
            return None, items
        pixels = decode_picture(record, at_least=at_least)
        size = (record.width, record.height)
        first = items[0]
        if isinstance(first, Region):
            regions = [item for item in items if isinstance(item, Region)]
            picture = self._transform(kind, pixels, _boxes_in(pixels, size, regions), block.image_px, draw)
            kept: list[Item] = [Region(regions[i].text, Box(*box)) for i, box in zip(picture.kept, picture.boxes, strict=True)]
            if not kept:
                _reject(record, "box_outside", "regions/box", "no box with an area in the network input", "at least one")
            return picture.image, kept
        if isinstance(first, Objects):
            picture = self._transform(kind, pixels, _boxes_in(pixels, size, first.objects), block.image_px, draw)
            pairs = zip(picture.kept, picture.boxes, strict=True)
            return picture.image, [Objects(tuple(dataclasses.replace(first.objects[i], box=Box(*box)) for i, box in pairs))]
        return self._transform(kind, pixels, [], block.image_px, draw).image, items


_LABELLED = {SUMMARISATION.name, *(task.name for task in GLUE)}  # tasks of labelled texts
_TASK_IDS = {name: number for number, name in enumerate(TASK_NAMES)}
_NO_NEGATIVES = Negatives()


def _boxes_in(pixels: np.ndarray, size: tuple[int, int], items: Iterable[Region | DetectedObject]) -> list[Box]:
    """The items' boxes, which are in pixels of the stored picture of `size`, in those of the decoded one."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return [item.box for item in items]
    return [scale_box(item.box, x=width / size[0], y=height / size[1]) for item in items]


def _reject(record: Record, reason: str, field: str, found: str, expected: str) -> None:
    raise RecordError(dataset=record.dataset, record=record.record_id, reason=reason, field=field, found=found, expected=expected)


def sequences_per_row(block: BlockConfig) -> int:
    """G of a block: sequences that each of its rows has. Raises ConfigError when its row kinds give different numbers."""
    counts = {source.row: block.pairs_per_image * len(_tasks_of(source.row)) for source in block.sources}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{row} {count}" for row, count in counts.items()) or "no sources"
        raise ConfigError(f"data.blocks {block.name}: found {listed} sequences per row, expected one number")
    return next(iter(counts.values()))


def _tasks_of(row: str) -> tuple[Task, ...]:
    if row not in ROWS:
        raise ConfigError(f"row: found {row!r}, expected one of {', '.join(ROWS)}")
    return ROWS[row]
