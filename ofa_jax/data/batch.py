"""The type in which the NumPy side and the JAX side meet.

A global batch is a fixed set of row blocks (`config.BlockConfig`). A block has R rows (images, or texts) and Q = R * G sequences,
where G is constant (0 in a block of stream `pictures`): sequence q belongs to row q // G, so the model encodes each image once and repeats
its features G times. Every shape is static: it depends on the config alone. NamedTuples are pytrees by themselves, so nothing here needs
JAX.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from typing import NamedTuple

import numpy as np

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, BlockConfig


class Block(NamedTuple):
    """Arrays of one row block; on one host its slice of the rows, on the device the global block."""

    images: np.ndarray | None  # uint8 [R, image_px, image_px, 3], RGB; None in a text block
    image_mask: np.ndarray | None  # bool [R]: False hides all patches of the row (a padding row)
    hole_mask: np.ndarray | None  # bool [R]: True sets the central half-side square to 0 after normalisation (image infilling)
    source_ids: np.ndarray  # int32 [Q, S]: BOS + instruction + EOS, right-padded with PAD
    decoder_ids: np.ndarray  # int32 [Q, T]: BOS + prompt + target, right-padded with PAD
    target_ids: np.ndarray  # int32 [Q, T]: target + EOS; PAD where there is no loss, as under a prompt
    confidence: np.ndarray  # float32 [Q]: loss weight of the sequence (1, the answer's, or 2.0)
    code_mask: np.ndarray  # bool [Q]: the target is a grid of image codes
    task_ids: np.ndarray  # int32 [Q]: index into `tasks.table.TASK_NAMES`; -1 for a padding sequence
    elements: np.ndarray  # int64 [R]: index of the row in the block's endless order


class Sequence(NamedTuple):
    """One encoded sequence of a row, before padding. Lengths already fit the block."""

    source_ids: list[int]  # BOS + instruction + EOS
    target_ids: list[int]  # target body, without BOS and EOS
    confidence: float
    code_mask: bool
    task_id: int
    no_loss_prefix: int  # target tokens at the start that carry no loss
    prompt_ids: tuple[int, ...] = ()  # what the decoder reads between BOS and the target, without loss
    ends: bool = True  # EOS follows the target


class Row(NamedTuple):
    """One row of a block: a picture (None in a text block) and its G sequences."""

    image: np.ndarray | None  # uint8 [image_px, image_px, 3]
    hole: bool
    sequences: tuple[Sequence, ...]


class Reject(NamedTuple):
    """One record that could not be used, in the words of the quarantine list."""

    dataset: str
    record: str  # record id or "#index" when the id itself cannot be read
    reason: str  # short slug that is counted: "image", "empty_text", "box_outside", "token_range", "schema", "confidence"
    field: str
    found: str
    expected: str
    retry: int = 0  # 0: the record came in its turn, once an epoch; else the number of the draw that was to replace another


class Batch(NamedTuple):
    """What the pipeline yields for one `data_step`."""

    data_step: int
    blocks: dict[str, Block]  # by block name, in the config's order
    rejects: tuple[Reject, ...]  # of this host's rows; stays on the host


def digest(batch: Batch) -> str:
    """Returns a 128-bit BLAKE2 digest, in hexadecimal, of everything a batch's blocks hold: names, shapes, dtypes and bytes."""
    hasher = hashlib.blake2b(digest_size=16)
    for name, block in batch.blocks.items():
        for field, array in block._asdict().items():
            hasher.update(f"{name}.{field} {None if array is None else (array.dtype.str, array.shape)}\n".encode())
            if array is not None:
                hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()


PADDING_TASK = -1  # task id of a padding sequence
PADDING_ELEMENT = -1  # element of a padding row


def collate(
    rows: Iterable[Row],
    block: BlockConfig,
    elements: Ordered[int],
    *,
    vocab_size: int | None = None,
    images: np.ndarray | None = None,
) -> Block:
    """Stacks rows into the arrays of one block, right-padded to the block's lengths.

    Args:
      rows: R rows of the same number of sequences G; sequence g of row r becomes sequence r * G + g. They may be made while they are taken:
        a picture is copied before the next row is asked for, so that the memory of one can serve all.
      block: its `stream`, `image_px`, `source_len` S and `decoder_len` T fix every shape.
      elements: the R indices of the rows in the block's endless order.
      vocab_size: where given, ids are checked to be below it.
      images: where given, uint8 [R, image_px, image_px, 3]: the memory that the result's pictures take.

    A target of n tokens fills n + 1 positions: `decoder_ids` BOS + target, `target_ids` target + EOS, of which the first
    `no_loss_prefix` are PAD (never the EOS). Raises ValueError where a row breaks the promises of `Row` and `Sequence`.
    """
    num_rows = len(elements)
    image_mask = hole_mask = None
    if block.stream == "text":
        images = None
    else:
        images = np.empty((num_rows, block.image_px, block.image_px, 3), np.uint8) if images is None else images
        image_mask, hole_mask = np.ones(num_rows, bool), np.zeros(num_rows, bool)
    kept: list[tuple[Sequence, ...]] = []
    for r, row in enumerate(rows):
        kept.append(row.sequences)
        if r >= num_rows:
            break
        if len(row.sequences) != len(kept[0]):
            raise ValueError(f"block {block.name}: row {r}: found {len(row.sequences)} sequences, expected {len(kept[0])} as in row 0")
        if images is not None and hole_mask is not None:
            if row.image is None or row.image.shape != images.shape[1:] or row.image.dtype != np.uint8:
                found = "none" if row.image is None else f"{row.image.dtype} {row.image.shape}"
                raise ValueError(f"block {block.name}: row {r}: field image: found {found}, expected uint8 {images.shape[1:]}")
            images[r], hole_mask[r] = row.image, row.hole
    if not kept or len(kept) != num_rows:
        found = f"{len(kept)} rows" if len(kept) <= num_rows else "more rows"
        raise ValueError(f"block {block.name}: found {found} for {num_rows} elements, expected one row each, at least one")
    group = len(kept[0])
    if group == 0 and block.stream != "pictures":
        raise ValueError(f"block {block.name}: row 0: found no sequences, expected at least 1")
    num_sequences = num_rows * group
    source_ids = np.full((num_sequences, block.source_len), PAD_ID, np.int32)
    decoder_ids = np.full((num_sequences, block.decoder_len), PAD_ID, np.int32)
    target_ids = np.full((num_sequences, block.decoder_len), PAD_ID, np.int32)
    confidence = np.zeros(num_sequences, np.float32)
    code_mask = np.zeros(num_sequences, bool)
    task_ids = np.zeros(num_sequences, np.int32)
    if group:
        decoder_ids[:, 0] = BOS_ID
    num_source_ids = num_target_ids = 0
    for r, sequences in enumerate(kept):
        for q, sequence in enumerate(sequences, start=r * group):
            source, target = sequence.source_ids, sequence.target_ids
            num_source, num_target, behind = len(source), len(target), len(sequence.prompt_ids)
            if not 1 <= num_source <= block.source_len:
                raise ValueError(f"block {block.name}: row {r}: field source_ids: found {num_source} ids, expected 1..{block.source_len}")
            most = block.decoder_len - behind - sequence.ends
            if num_target > most or (not sequence.ends and not num_target):
                field = f"{num_target} ids behind a prompt of {behind}" if behind else f"{num_target} ids"
                raise ValueError(f"block {block.name}: row {r}: field target_ids: found {field}, expected {int(not sequence.ends)}..{most}")
            source_ids[q, :num_source] = source
            read = [*sequence.prompt_ids, *(target if sequence.ends else target[:-1])]
            decoder_ids[q, 1 : len(read) + 1] = read
            target_ids[q, behind : behind + num_target] = target
            if sequence.ends:
                target_ids[q, behind + num_target] = EOS_ID
            confidence[q], code_mask[q], task_ids[q] = sequence.confidence, sequence.code_mask, sequence.task_id
            num_source_ids += num_source
            num_target_ids += num_target + sequence.ends
    _check_ids(source_ids, block, field="source_ids", expected_ids=num_source_ids, vocab_size=vocab_size)
    _check_ids(target_ids, block, field="target_ids", expected_ids=num_target_ids, vocab_size=vocab_size)
    for q, sequence in enumerate(sequence for sequences in kept for sequence in sequences):
        if sequence.no_loss_prefix:
            behind = len(sequence.prompt_ids)
            target_ids[q, behind : behind + min(sequence.no_loss_prefix, len(sequence.target_ids))] = PAD_ID
    return Block(
        images, image_mask, hole_mask, source_ids, decoder_ids, target_ids, confidence, code_mask, task_ids,
        np.array(elements, np.int64),
    )  # fmt: skip


def _check_ids(ids: np.ndarray, block: BlockConfig, *, field: str, expected_ids: int, vocab_size: int | None) -> None:
    """PAD inside a sequence would end it (source) or silence its loss (target), an id past the vocabulary would read garbage."""
    if not ids.size:
        return
    if np.count_nonzero(ids != PAD_ID) != expected_ids:
        raise ValueError(f"block {block.name}: field {field}: found PAD (id {PAD_ID}) inside a sequence, expected it only after the end")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or (vocab_size is not None and highest >= vocab_size):
        bound = "" if vocab_size is None else f"..{vocab_size - 1}"
        raise ValueError(f"block {block.name}: field {field}: found ids {lowest}..{highest}, expected 0{bound}")


def pad_block(block: Block, rows: int) -> Block:
    """Appends padding rows until there are `rows`: for evaluation's last batch, whose shape may not change.

    A padding row shows no patch (`image_mask` False), its sequences read BOS alone, so that attention always has a key, and all
    their targets are PAD, so that they count in no sum. `task_ids` and `elements` are -1. Raises ValueError when `rows` is too few.
    """
    present = len(block.elements)
    if rows < present:
        raise ValueError(f"pad_block: found {present} rows, expected at most {rows}")
    if rows == present:
        return block
    group = len(block.task_ids) // present

    def extend(values: np.ndarray, *, per_row: int, fill: float) -> np.ndarray:
        padded = np.full((rows * per_row, *values.shape[1:]), fill, values.dtype)
        padded[: len(values)] = values
        return padded

    source_ids = extend(block.source_ids, per_row=group, fill=PAD_ID)
    decoder_ids = extend(block.decoder_ids, per_row=group, fill=PAD_ID)
    source_ids[present * group :, 0] = BOS_ID
    decoder_ids[present * group :, 0] = BOS_ID
    return Block(
        images=None if block.images is None else extend(block.images, per_row=1, fill=0),
        image_mask=None if block.image_mask is None else extend(block.image_mask, per_row=1, fill=False),
        hole_mask=None if block.hole_mask is None else extend(block.hole_mask, per_row=1, fill=False),
        source_ids=source_ids,
        decoder_ids=decoder_ids,
        target_ids=extend(block.target_ids, per_row=group, fill=PAD_ID),
        confidence=extend(block.confidence, per_row=group, fill=0.0),
        code_mask=extend(block.code_mask, per_row=group, fill=False),
        task_ids=extend(block.task_ids, per_row=group, fill=PADDING_TASK),
        elements=extend(block.elements, per_row=1, fill=PADDING_ELEMENT),
    )
