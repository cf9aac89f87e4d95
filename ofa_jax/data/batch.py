"""The type in which the NumPy side and the JAX side meet.

A global batch is a fixed set of row blocks (`config.BlockConfig`). A block has R rows (images, or texts) and Q = R * G sequences,
where G is constant: sequence q belongs to row q // G, so the model encodes each image once and repeats its features G times.
Every shape is static: it depends on the config alone. NamedTuples are pytrees by themselves, so nothing here needs JAX.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Block(NamedTuple):
    """Arrays of one row block; on one host its slice of the rows, on the device the global block."""

    images: np.ndarray | None  # uint8 [R, image_px, image_px, 3], RGB; None in a text block
    image_mask: np.ndarray | None  # bool [R]: False hides all patches of the row (a padding row)
    hole_mask: np.ndarray | None  # bool [R]: True sets the central half-side square to 0 after normalisation (image infilling)
    source_ids: np.ndarray  # int32 [Q, S]: BOS + instruction + EOS, right-padded with PAD
    decoder_ids: np.ndarray  # int32 [Q, T]: BOS + target, right-padded with PAD
    target_ids: np.ndarray  # int32 [Q, T]: target + EOS; PAD where there is no loss
    confidence: np.ndarray  # float32 [Q]: loss weight of the sequence (1, the answer's, or 2.0)
    code_mask: np.ndarray  # bool [Q]: the target is a grid of image codes
    task_ids: np.ndarray  # int32 [Q]: index into `tasks.table.TASK_NAMES`; -1 for a padding sequence
    elements: np.ndarray  # int64 [R]: index of the row in the block's endless order


class Reject(NamedTuple):
    """One record that could not be used, in the words of the quarantine list."""

    dataset: str
    record: str  # record id or "#index" when the id itself cannot be read
    reason: str  # short slug that is counted: "image", "empty_text", "box_outside", "token_range", "schema", "confidence"
    field: str
    found: str
    expected: str


class Batch(NamedTuple):
    """What the pipeline yields for one `data_step`."""

    data_step: int
    blocks: dict[str, Block]  # by block name, in the config's order
    rejects: tuple[Reject, ...]  # of this host's rows; stays on the host
