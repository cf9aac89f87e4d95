"""Collation to static shapes, and padding rows that count nowhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, BlockConfig
from ofa_jax.data.batch import Batch, Row, Sequence, collate, digest, pad_block

BLOCK = BlockConfig("pairs", "pairs", rows=2, source_len=5, target_len=4, sources=(), image_px=2)
TEXT = dataclasses.replace(BLOCK, stream="text", image_px=0)


def sequence(**changes: object) -> Sequence:
    return Sequence([0, 9, 2], [7, 8], 1.0, False, 3, 0)._replace(**changes)


def row(*sequences: Sequence, value: int = 1, hole: bool = False) -> Row:
    return Row(np.full((2, 2, 3), value, np.uint8), hole, sequences)


def test_arrays_of_a_block():
    rows = [
        row(sequence(), sequence(source_ids=[0, 4, 5, 6, 2], target_ids=[5], confidence=0.25, task_id=1)),
        row(sequence(target_ids=[]), sequence(target_ids=[7, 8, 9], code_mask=True), value=2, hole=True),
    ]
    block = collate(rows, BLOCK, [28, 29])
    np.testing.assert_array_equal(
        block.source_ids, [[0, 9, 2, PAD_ID, PAD_ID], [0, 4, 5, 6, 2], [0, 9, 2, PAD_ID, PAD_ID], [0, 9, 2, PAD_ID, PAD_ID]]
    )
    np.testing.assert_array_equal(
        block.decoder_ids,
        [[BOS_ID, 7, 8, PAD_ID], [BOS_ID, 5, PAD_ID, PAD_ID], [BOS_ID, PAD_ID, PAD_ID, PAD_ID], [BOS_ID, 7, 8, 9]],
    )
    np.testing.assert_array_equal(
        block.target_ids, [[7, 8, EOS_ID, PAD_ID], [5, EOS_ID, PAD_ID, PAD_ID], [EOS_ID, PAD_ID, PAD_ID, PAD_ID], [7, 8, 9, EOS_ID]]
    )
    np.testing.assert_array_equal(block.confidence, np.array([1, 0.25, 1, 1], np.float32))
    np.testing.assert_array_equal(block.code_mask, [False, False, False, True])
    np.testing.assert_array_equal(block.task_ids, [3, 1, 3, 3])
    np.testing.assert_array_equal(block.elements, [28, 29])
    np.testing.assert_array_equal(block.images[:, 0, 0, 0], [1, 2])
    np.testing.assert_array_equal(block.image_mask, [True, True])
    np.testing.assert_array_equal(block.hole_mask, [False, True])
    dtypes = {name: values.dtype.name for name, values in block._asdict().items()}
    assert dtypes == {
        "images": "uint8", "image_mask": "bool", "hole_mask": "bool", "source_ids": "int32", "decoder_ids": "int32",
        "target_ids": "int32", "confidence": "float32", "code_mask": "bool", "task_ids": "int32", "elements": "int64",
    }  # fmt: skip


def test_a_prefix_without_loss_stays_in_the_decoder_and_keeps_its_eos():
    """CC12M captions: the first two target positions carry no loss (official pretraining code); the EOS always does."""
    block = collate([row(sequence(target_ids=[7, 8, 9], no_loss_prefix=2), sequence(target_ids=[7], no_loss_prefix=2))], BLOCK, [0])
    np.testing.assert_array_equal(block.decoder_ids, [[BOS_ID, 7, 8, 9], [BOS_ID, 7, PAD_ID, PAD_ID]])
    np.testing.assert_array_equal(block.target_ids, [[PAD_ID, PAD_ID, 9, EOS_ID], [PAD_ID, EOS_ID, PAD_ID, PAD_ID]])


def test_a_text_block_has_no_pictures():
    block = collate([Row(None, False, (sequence(),))], TEXT, [4])
    assert block.images is None and block.image_mask is None and block.hole_mask is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(sequence(source_ids=[0] + [9] * 5))], "row 0: field source_ids: found 6 ids, expected 1..5"),
        ([row(sequence(source_ids=[]))], "field source_ids: found 0 ids"),
        ([row(sequence(target_ids=[9] * 4))], "row 0: field target_ids: found 4 ids, expected 0..3"),
        ([row(sequence(source_ids=[0, PAD_ID, 2]))], "field source_ids: found PAD"),
        ([row(sequence(target_ids=[PAD_ID]))], "field target_ids: found PAD"),
        ([row(sequence(target_ids=[100]))], "field target_ids: found ids 1..100, expected 0..99"),
        ([row(sequence(source_ids=[-3]))], "field source_ids: found ids -3..1, expected 0..99"),
        ([row(sequence()), row(sequence(), sequence())], "row 1: found 2 sequences, expected 1"),
        ([row()], "row 0: found no sequences"),
        ([], "found 0 rows"),
        ([Row(None, False, (sequence(),))], "row 0: field image: found none"),
        ([Row(np.zeros((3, 2, 3), np.uint8), False, (sequence(),))], "field image: found uint8 \\(3, 2, 3\\)"),
    ],
)
def test_rows_that_break_their_promises_are_refused(rows: list[Row], message: str):
    with pytest.raises(ValueError, match=message):
        collate(rows, BLOCK, list(range(len(rows))), vocab_size=100)


def test_padding_rows_count_nowhere():
    block = collate([row(sequence(), sequence(code_mask=True), hole=True)], BLOCK, [5])
    padded = pad_block(block, 3)
    for before, after in zip(block, padded, strict=True):
        np.testing.assert_array_equal(after[: len(before)], before)
        assert after.dtype == before.dtype and len(after) == 3 * len(before)
    assert not padded.image_mask[1:].any() and not padded.hole_mask[1:].any() and not padded.images[1:].any()
    assert (padded.target_ids[2:] == PAD_ID).all() and (padded.task_ids[2:] == -1).all() and not padded.confidence[2:].any()
    assert (padded.source_ids[2:, 0] == BOS_ID).all() and (padded.source_ids[2:, 1:] == PAD_ID).all()
    assert (padded.decoder_ids[2:, 0] == BOS_ID).all() and not padded.code_mask[2:].any() and (padded.elements[1:] == -1).all()
    assert pad_block(block, 1) is block
    with pytest.raises(ValueError, match="found 3 rows, expected at most 2"):
        pad_block(padded, 2)


def test_a_text_block_is_padded_without_pictures():
    padded = pad_block(collate([Row(None, False, (sequence(),))], TEXT, [4]), 2)
    assert padded.images is None and padded.image_mask is None and padded.task_ids.tolist() == [3, -1]


def test_the_digest_tells_any_change_of_a_batch():
    block = collate([row(sequence())], BLOCK, [0])
    batch = Batch(3, {"pairs": block}, ())
    assert digest(batch) == digest(Batch(4, {"pairs": collate([row(sequence())], BLOCK, [0])}, ()))
    pixel = block.images.copy()
    pixel[0, 1, 1, 2] += 1
    changed = [
        Batch(3, {"captions": block}, ()),
        *(
            Batch(3, {"pairs": block._replace(**change)}, ())
            for change in (
                {"images": pixel},
                {"images": None},
                {"source_ids": block.source_ids + 1},
                {"source_ids": block.source_ids.astype(np.int64)},
                {"source_ids": block.source_ids.reshape(-1, 1)},
                {"elements": block.elements + 1},
            )
        ),
    ]
    assert len({digest(batch), *map(digest, changed)}) == 1 + len(changed)
