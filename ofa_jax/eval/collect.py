"""Picks the examples of an evaluation set, deterministically, and makes them model inputs.

The same config gives the same examples, whatever the training seed: random choices (which item of a record, a matching negative, the
noise of a text) come from a generator keyed by (EVAL_SEED, set name, record, item).
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import numpy as np

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.rows import SEQUENCES_PER_ITEM
from ofa_jax.config.schema import BlockConfig, EvalSetConfig, RunConfig, SourceConfig
from ofa_jax.data.batch import Sequence
from ofa_jax.data.records import ImageRecord, Question, Record, RecordError
from ofa_jax.metrics.vqa_answers import MIN_ANSWERS
from ofa_jax.tasks.base import Item, Task, Words
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.tasks.table import ROWS, TASKS

EVAL_SEED = 20_220_203  # fixed: results of differently seeded runs stay comparable
_READ_PER_EXAMPLE = 4  # of a large split so many evenly spaced records an example are read: some may have no item of the task
_READ_AT_ONCE = 1_000  # records
BOX_IDS = 4  # ids of a box
PER_PICTURE = ("captioning", "short_captioning")  # tasks with one example a picture, whose references are all its captions


@dataclasses.dataclass(frozen=True)
class Example:
    """One sequence to evaluate and what it was made of."""

    record: Record  # without its encoded picture
    item: Item  # as stored: boxes in pixels of the stored picture
    picture: int  # index into `Examples.images`; -1 without a picture
    sequence: Sequence
    target_text: str  # the words of the target before it is encoded and cut; boxes and codes left out
    scored: tuple[bool, ...]  # for every target id: teacher-forced evaluation counts it
    number: int = 0  # its place in the set: what is drawn for it depends on a seed and on this, not on the examples beside it


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one set, those of one record next to each other, and their pictures, each once."""

    eval_set: EvalSetConfig
    task: Task
    row: str  # the row kind whose items these are
    block: BlockConfig  # lengths and picture side
    examples: list[Example]
    images: np.ndarray  # uint8 [pictures, px, px, 3]; no pictures for texts
    holes: np.ndarray  # bool [pictures]


def set_generator(name: str, record: int, item: int = 0) -> np.random.Generator:
    """The generator of one example: a function of (EVAL_SEED, set, record, item) alone."""
    seed = np.random.SeedSequence((EVAL_SEED, zlib.crc32(name.encode()), record, item))
    return np.random.Generator(np.random.Philox(seed))


def task_of(eval_set: EvalSetConfig) -> Task:
    """The task that a set names. Raises ConfigError where there is none."""
    if eval_set.task not in TASKS:
        raise ConfigError(f"eval.sets {eval_set.name}: field task: found {eval_set.task!r}, expected one of {', '.join(TASKS)}")
    return TASKS[eval_set.task]


def block_for(config: RunConfig, eval_set: EvalSetConfig) -> tuple[str, BlockConfig]:
    """The row kind and the static lengths that a set is evaluated with.

    The lengths are those of the training block that draws this row kind from this dataset, else of the first block that draws
    this row kind from any, else `eval.source_len`, `target_len` and `image_px`. Nothing is sampled or augmented.
    """
    task = task_of(eval_set)
    rows = [row for row, tasks in ROWS.items() if task in tasks]
    lines = [(row, block, source) for row in rows for block in config.data.blocks for source in block.sources if source.row == row]
    same = [line for line in lines if line[2].dataset == eval_set.dataset]
    source = SourceConfig(eval_set.dataset, rows[0], split=eval_set.split)  # type: ignore[arg-type]
    if not lines:
        text = rows[0] in SEQUENCES_PER_ITEM["text"]
        return rows[0], BlockConfig(
            name=eval_set.name,
            stream="text" if text else "pairs",
            rows=1,
            source_len=config.eval.source_len,
            target_len=config.eval.target_len,
            sources=(source,),
            image_px=0 if text else config.eval.image_px,
        )
    row, block, _ = (same or lines)[0]
    source = dataclasses.replace(source, row=row)
    block = dataclasses.replace(block, name=eval_set.name, rows=1, sources=(source,), pairs_per_image=1, num_patches=0, augment="resize")
    return row, block


def choose(counts: list[int], *, limit: int, name: str) -> list[tuple[int, int]]:
    """(record, item) of the examples in order of record: all, or `limit` of them spread over the records.

    With fewer examples than records the records are evenly spaced, else every record gives its share; items of a record are drawn
    without replacement.
    """
    usable = [r for r, count in enumerate(counts) if count]
    total = sum(counts)
    if not limit or limit >= total:
        return [(r, i) for r in usable for i in range(counts[r])]
    if limit < len(usable):
        usable = [usable[k * len(usable) // limit] for k in range(limit)]
    orders = {r: set_generator(name, r).permutation(counts[r]) for r in usable}
    chosen: list[tuple[int, int]] = []
    depth = 0
    while len(chosen) < limit:
        deep = [r for r in usable if counts[r] > depth]
        room = limit - len(chosen)
        if len(deep) > room:
            deep = [deep[k * len(deep) // room] for k in range(room)]
        chosen += [(r, int(orders[r][depth])) for r in deep]
        depth += 1
    return sorted(chosen)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """An item that a set evaluates."""

    record: Record
    place: int  # of the record among those that were read
    number: int  # of the item in its record
    item: Item  # as stored


def choose_items(
    config: RunConfig, eval_set: EvalSetConfig, *, build_row: RowBuilder, open_source: Any, with_pictures: bool = True
) -> list[Chosen]:
    """The items of a set in the order of its examples. A captioning set has one a picture, a detection set one for pictures without
    objects too, if any has some.

    with_pictures: False drops every encoded picture as soon as its record was read. Raises as `collect`.
    """
    task = task_of(eval_set)
    source = open_source(block_for(config, eval_set)[1].sources[0])
    count = len(source)
    read = min(count, _READ_PER_EXAMPLE * eval_set.limit) if eval_set.limit else count
    indices = [i * count // read for i in range(read)]
    records: list[Record] = []
    for start in range(0, read, _READ_AT_ONCE):
        found = source.read(indices[start : start + _READ_AT_ONCE])
        records += found if with_pictures else map(without_picture, found)
    items = [_items(build_row, record, task.name) for record in records]
    if task.name == "detection" and not any(record.objects for record in records if isinstance(record, ImageRecord)):
        items = [()] * len(records)  # nobody looked for objects here
    counts = [min(1, len(its)) if task.name in PER_PICTURE else len(its) for its in items]
    if not sum(counts):
        raise DataError(f"eval set {eval_set.name}: found no item for {task.name} in {eval_set.dataset}/{eval_set.split}, expected one")
    chosen = [Chosen(records[r], r, i, items[r][i]) for r, i in choose(counts, limit=eval_set.limit, name=eval_set.name)]
    if task.name in ("vqa", "answering"):
        _check_answers(eval_set, chosen)
    return chosen


def _check_answers(eval_set: EvalSetConfig, chosen: list[Chosen]) -> None:
    """Raises RecordError where some questions of a set have people's answers and others none, or any has too few to be scored."""
    asked = [(c.record.record_id, c.item) for c in chosen if isinstance(c.item, Question)]
    some = any(question.answers for _, question in asked)
    bad = [(record, question) for record, question in asked if some and len(question.answers) < MIN_ANSWERS]
    if bad:
        record, question = bad[0]
        raise RecordError(
            dataset=eval_set.dataset,
            record=record,
            reason="answers",
            field="answers/text",
            found=f"{len(question.answers)} people's answers to {question.question!r} (fewer than {MIN_ANSWERS} to {len(bad)} of the "
            f"{len(asked)} questions of set {eval_set.name})",
            expected=f"at least {MIN_ANSWERS} for every question of the set, ten in VQAv2, or none for any",
        )


def collect(config: RunConfig, eval_set: EvalSetConfig, *, build_row: RowBuilder, open_source: Any) -> Examples:
    """The examples of one set. A captioning set has one example a picture, whose references are all its captions.

    Records without an item of the task are passed over (`choose_items` says which). Raises DataError where a split has no such item at
    all, and RecordError where a chosen record is bad, or where only some questions have people's answers: an evaluation never leaves bad
    records out in silence.
    """
    task = task_of(eval_set)
    row, block = block_for(config, eval_set)
    examples: list[Example] = []
    images: list[np.ndarray] = []
    holes: list[bool] = []
    last = -1
    for c in choose_items(config, eval_set, build_row=build_row, open_source=open_source):
        draw = set_generator(eval_set.name, c.place, c.number + 1)
        built = build_row.build_one(block, task.name, eval_set.dataset, c.record, c.number, draw)
        if built.image is not None and c.place != last:
            images.append(built.image)
            holes.append(built.hole)
        last = c.place
        text = "".join(part.text for part in built.example.target if isinstance(part, Words)).strip()
        number = len(examples)
        examples.append(Example(without_picture(c.record), c.item, len(images) - 1, built.sequence, text, tuple(built.scored), number))
    pictures = np.stack(images) if images else np.zeros((0, 0, 0, 3), np.uint8)
    return Examples(eval_set, task, row, block, examples, pictures, np.array(holes, bool))


def without_picture(record: Record) -> Record:
    """The record with its encoded picture dropped, so that keeping many costs little memory."""
    return dataclasses.replace(record, image=b"") if isinstance(record, ImageRecord) else record


def _items(build_row: RowBuilder, record: Record, task: str) -> tuple[Item, ...]:
    """The record's items of a task; none where it has no annotation of that kind."""
    try:
        return build_row.items(record, task)
    except RecordError as error:
        if error.reason != "schema":
            raise
        return ()
