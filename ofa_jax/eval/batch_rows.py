"""A batch read back into words: its rows with where they came from, their sequences as pieces of text, and the boxes that ids name."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ofa_jax.config.errors import ConfigError, nearest
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, UNK_ID, AnyRun, RunConfig, VocabConfig
from ofa_jax.data.batch import Batch, Block
from ofa_jax.data.pipeline import Origin
from ofa_jax.data.records import Box
from ofa_jax.data.usage import Usage
from ofa_jax.eval.parse import read_box, read_objects
from ofa_jax.tasks.table import TASK_NAMES, TASKS
from ofa_jax.vocab.layout import bin_of, code_of
from ofa_jax.vocab.tokenizer import Tokenizer

SPECIAL_NAMES = {BOS_ID: "<s>", PAD_ID: "<pad>", EOS_ID: "</s>", UNK_ID: "<unk>"}
Kind = Literal["text", "special", "bin", "code"]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Ids beside each other that are read alike."""

    kind: Kind
    text: str  # special ids as `<s>`, `</s>`, `<mask>`, ...; bins and codes as numbers
    loss: bool  # False: a target that carries no loss


@dataclasses.dataclass(frozen=True)
class ShownSequence:
    """One sequence of a row."""

    number: int  # from 1, within its row
    task: str
    confidence: float
    source: tuple[Piece, ...]
    target: tuple[Piece, ...]
    source_tokens: int  # positions that are no padding
    target_tokens: int
    loss_tokens: int
    source_boxes: tuple[tuple[str, Box], ...]  # labels, and boxes in pixels of the network's input
    target_boxes: tuple[tuple[str, Box], ...]
    codes: tuple[int, ...]  # image codes of the target


@dataclasses.dataclass(frozen=True)
class ShownRow:
    """One row of a block."""

    number: int  # from 0, within the block of the global batch
    origin: Origin
    epoch: int  # of its source, from 1
    image: np.ndarray | None  # uint8 [image_px, image_px, 3], as it is stored in the batch
    hole: bool
    sequences: tuple[ShownSequence, ...]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which rows are to be seen; empty: all."""

    task: str = ""  # rows with this task, and of their sequences only those
    dataset: str = ""
    rejects: bool = False  # only rows whose first draw was rejected
    rows: int = 32  # of each block at most; 0: no limit


@dataclasses.dataclass(frozen=True)
class ChosenRows:
    """The rows of one block that a selection leaves."""

    name: str
    numbers: tuple[int, ...]  # of the rows to be shown, within the block of the global batch
    selected: int  # rows that the selection names, of which `numbers` are the first
    total: int


def check_selection(selection: Selection, config: AnyRun) -> None:
    """Raises ConfigError for a task or dataset that the config's batches do not have, and for a negative number of rows."""
    sources = [source for block in config.data.blocks for source in block.sources]
    datasets = list(dict.fromkeys(source.dataset for source in sources))
    if selection.dataset and selection.dataset not in datasets:
        raise ConfigError(f"--dataset: found {selection.dataset!r}, which no block draws from; {nearest(selection.dataset, datasets)}")
    if selection.task and not isinstance(config, RunConfig):
        raise ConfigError(f"--task: found {selection.task!r} for the run of a {config.objective}, whose batches are pictures alone")
    if selection.task and selection.task not in TASKS:
        raise ConfigError(f"--task: found {selection.task!r}; {nearest(selection.task, TASK_NAMES)}")
    if selection.rows < 0:
        raise ConfigError(f"--rows: found {selection.rows}, expected 0 (all) or more")


def choose_rows(batch: Batch, origins: Mapping[str, Sequence[Origin]], selection: Selection) -> list[ChosenRows]:
    """Returns which rows of every block of a global batch are selected. origins: of `Pipeline.trace`."""
    found = []
    for name, block in batch.blocks.items():
        chosen = [r for r, origin in enumerate(origins[name]) if _is_chosen(block, r, origin, selection)]
        kept = chosen[: selection.rows] if selection.rows else chosen
        found.append(ChosenRows(name, tuple(kept), len(chosen), len(block.elements)))
    return found


@dataclasses.dataclass(frozen=True)
class BatchReader:
    """Reads the rows of one global batch back, one at a time, so that no more of them exist than are being shown."""

    batch: Batch
    origins: Mapping[str, Sequence[Origin]]  # of `Pipeline.trace`
    usage: Usage
    vocab: VocabConfig | None  # None for batches of pictures alone
    tokenizer: Tokenizer | None
    task: str = ""  # of a row's sequences only those; empty: all

    def read(self, name: str, number: int) -> ShownRow:
        """Returns row `number` of the block `name`."""
        block, origin = self.batch.blocks[name], self.origins[name][number]
        sequences: list[ShownSequence] = []
        if self.vocab is not None and self.tokenizer is not None:
            group = len(block.task_ids) // len(block.elements)
            sequences = [read_sequence(block, number * group + g, g + 1, vocab=self.vocab, tokenizer=self.tokenizer) for g in range(group)]
        return ShownRow(
            number=number,
            origin=origin,
            epoch=self.usage.epoch(list(self.batch.blocks).index(name), origin.element) + 1,
            image=None if block.images is None else block.images[number],
            hole=block.hole_mask is not None and bool(block.hole_mask[number]),
            sequences=tuple(s for s in sequences if self.task in ("", s.task)),
        )


def _is_chosen(block: Block, row: int, origin: Origin, selection: Selection) -> bool:
    if selection.dataset and origin.source.dataset != selection.dataset:
        return False
    if selection.rejects and not origin.rejects:
        return False
    if not selection.task:
        return True
    group = len(block.task_ids) // len(block.elements)
    return TASK_NAMES.index(selection.task) in block.task_ids[row * group : (row + 1) * group]


def read_sequence(block: Block, q: int, number: int, *, vocab: VocabConfig, tokenizer: Tokenizer) -> ShownSequence:
    """Returns sequence `q` of a block, the `number`-th of its row."""
    source = [int(token) for token in block.source_ids[q] if token != PAD_ID]
    # The decoder reads BOS and the target, without a gap; `target_ids` has PAD where a token carries no loss.
    body = [int(token) for token in block.decoder_ids[q] if token != PAD_ID][1:]
    target = [*body, EOS_ID]
    loss = [bool(token != PAD_ID) for token in block.target_ids[q, : len(target)]]
    task = TASK_NAMES[block.task_ids[q]]
    codes = [code for code in (code_of(token, vocab=vocab) for token in body) if code is not None]
    boxes = read_objects(body, vocab=vocab, tokenizer=tokenizer)[0] if TASKS[task].output == "objects" else boxes_of(body, vocab=vocab)
    return ShownSequence(
        number=number,
        task=task,
        confidence=float(block.confidence[q]),
        source=tuple(pieces_of(source, [True] * len(source), vocab=vocab, tokenizer=tokenizer)),
        target=tuple(pieces_of(target, loss, vocab=vocab, tokenizer=tokenizer)),
        source_tokens=len(source),
        target_tokens=len(target),
        loss_tokens=sum(loss),
        source_boxes=tuple(boxes_of(source, vocab=vocab)),
        target_boxes=tuple(boxes),
        codes=tuple(codes),
    )


def boxes_of(ids: Sequence[int], *, vocab: VocabConfig) -> list[tuple[str, Box]]:
    """Returns the boxes, without labels, that runs of bins in `ids` name, four bins each; bins that are left over name none."""
    boxes = []
    for is_bin, run in itertools.groupby(ids, key=lambda token: bin_of(token, vocab=vocab) is not None):
        bins = list(run) if is_bin else []
        found = (read_box(bins[first : first + 4], vocab=vocab) for first in range(0, len(bins), 4))
        boxes += [("", box) for box in found if box is not None]
    return boxes


def pieces_of(ids: Sequence[int], loss: Sequence[bool], *, vocab: VocabConfig, tokenizer: Tokenizer) -> list[Piece]:
    """Returns `ids` in words, nothing left out; `loss` says of each whether it carries loss. Special ids are a piece each."""

    def kind_of(token: int) -> Kind:
        if token in SPECIAL_NAMES or token == vocab.mask_id:
            return "special"
        if token < vocab.first_code_id:
            return "text"
        return "code" if token < vocab.first_bin_id else "bin"

    pieces: list[Piece] = []
    for kind, run in itertools.groupby(zip(ids, loss, strict=True), key=lambda pair: kind_of(pair[0])):
        tokens = list(run)
        done: list[int] = []  # ids of this run of text before the part at hand: a piece's spaces depend on what stands before it
        for carries, part in itertools.groupby(tokens, key=lambda pair: pair[1]):
            own = [token for token, _ in part]
            if kind == "special":
                pieces += [Piece(kind, SPECIAL_NAMES.get(token, "<mask>"), carries) for token in own]
            elif kind == "text":
                before = tokenizer.decode(done)
                pieces.append(Piece(kind, tokenizer.decode([*done, *own])[len(before) :], carries))
            else:
                first = vocab.first_code_id if kind == "code" else vocab.first_bin_id
                pieces.append(Piece(kind, " ".join(str(token - first) for token in own), carries))
            done += own
    return pieces
