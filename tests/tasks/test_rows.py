"""The row builder: draws, order, determinism, evaluation examples and rejects."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.rows import PRETRAINING_ROWS
from ofa_jax.config.schema import BlockConfig, SourceConfig, VocabConfig
from ofa_jax.data.batch import Row
from ofa_jax.data.records import Box, ImageRecord, RecordError, Region, TextRecord
from ofa_jax.data.transforms.image import Picture, decode_image, transform
from ofa_jax.tasks.base import Codes, Objects, Passage
from ofa_jax.tasks.rows import RowBuilder, sequences_per_row
from ofa_jax.tasks.table import ROWS, TASK_NAMES
from ofa_jax.vocab.tokenizer import Tokenizer, load_tokenizer

IMAGE_ROWS = [row for row in PRETRAINING_ROWS if row != "text_infilling"]
PRETRAINING_TASKS = list(dict.fromkeys(task.name for row in PRETRAINING_ROWS for task in ROWS[row]))
Blocks = Callable[..., BlockConfig]


def same(first: Row, second: Row) -> bool:
    return first.sequences == second.sequences and first.hole == second.hole and np.array_equal(first.image, second.image)


@pytest.mark.parametrize("row", PRETRAINING_ROWS)
@pytest.mark.parametrize("augment", ["resize", "random_resize_crop", "scale_jitter"])
def test_the_generator_alone_decides(
    row: str, augment: str, builder: RowBuilder, block: Blocks, picture: ImageRecord, text_record: TextRecord
) -> None:
    record = text_record if row == "text_infilling" else picture
    made = block(row, augment=augment, pairs_per_image=2)
    first, second, other = (builder(made, SourceConfig("scenes", row), record, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert same(first, second)
    assert len(first.sequences) == 2 * len(ROWS[row]) == sequences_per_row(made)
    assert [TASK_NAMES[s.task_id] for s in first.sequences] == [task.name for task in ROWS[row]] * 2
    if row == "text_infilling" or (augment == "scale_jitter" and row != "image_infilling"):
        assert not same(first, other)
    copy = pickle.loads(pickle.dumps(builder))  # as a data worker gets it
    assert same(first, copy(made, SourceConfig("scenes", row), record, np.random.default_rng(5)))


def test_items_are_drawn_without_replacement_while_they_last(
    builder: RowBuilder, block: Blocks, picture: ImageRecord, tokenizer: Tokenizer
) -> None:
    def captions(pairs: int, seed: int) -> list[str]:
        row = builder(block("caption", pairs_per_image=pairs), SourceConfig("scenes", "caption"), picture, np.random.default_rng(seed))
        return [tokenizer.decode(s.target_ids) for s in row.sequences[::2]]

    for seed in range(20):
        assert len(set(captions(2, seed))) == 2
        drawn = captions(7, seed)
        assert len(set(drawn[:3])) == 3 and drawn[3:6] == drawn[:3] and drawn[6] == drawn[0]
    assert len({tuple(captions(3, seed)) for seed in range(60)}) == 6  # all orders


def test_picture_and_boxes_move_together(vocab: VocabConfig, tokenizer: Tokenizer, block: Blocks, picture: ImageRecord) -> None:
    """One transform per row, of all boxes that the row uses; a region that the crop leaves out is not used."""
    calls = []

    def crop_left_half(kind: str, image: np.ndarray, boxes: list[Box], px: int, draw: np.random.Generator) -> Picture:
        calls.append((kind, list(boxes), px))
        kept = tuple(i for i, box in enumerate(boxes) if box.x0 < 64)
        return Picture(image[:px, :px], tuple(Box(boxes[i].x0, boxes[i].y0, 32, 32) for i in kept), kept)

    regions = (Region("right", Box(70, 0, 80, 8)), Region("left", Box(16, 16, 20, 20)))
    build = RowBuilder(vocab, tokenizer, {}, crop_left_half)
    record = dataclasses.replace(picture, regions=regions)
    made = block("grounding", augment="random_resize_crop", pairs_per_image=2)
    row = build(made, SourceConfig("scenes", "grounding"), record, np.random.default_rng(0))
    [(kind, boxes, px)] = calls
    assert (kind, set(boxes), px) == ("random_resize_crop", {region.box for region in regions}, 64)
    assert [tokenizer.decode(s.target_ids) for s in row.sequences] == ["<bin_25><bin_25><bin_50><bin_50>", " left"] * 2
    with pytest.raises(RecordError, match="field regions/box: found no box with an area in the network input"):
        build(made, SourceConfig("scenes", "grounding"), dataclasses.replace(record, regions=regions[:1]), np.random.default_rng(0))
    detected = build(block("detection", augment="scale_jitter"), SourceConfig("scenes", "detection"), picture, np.random.default_rng(0))
    assert tokenizer.decode(detected.sequences[0].target_ids) == "<bin_12><bin_9><bin_50><bin_50> dog"


def test_a_crop_without_objects_has_an_empty_target(vocab: VocabConfig, tokenizer: Tokenizer, block: Blocks, picture: ImageRecord) -> None:
    build = RowBuilder(vocab, tokenizer, {}, lambda kind, image, boxes, px, draw: Picture(image[:px, :px], (), ()))
    row = build(block("detection"), SourceConfig("scenes", "detection"), picture, np.random.default_rng(0))
    assert row.sequences[0].target_ids == []


def test_infilling_is_never_augmented(builder: RowBuilder, block: Blocks, picture: ImageRecord) -> None:
    """Its codes belong to the picture as it is stored."""
    made = block("image_infilling", augment="scale_jitter")
    rows = [builder(made, SourceConfig("scenes", "image_infilling"), picture, np.random.default_rng(seed)) for seed in range(4)]
    plain = transform("resize", decode_image(picture.image), (), 64, np.random.default_rng(0)).image
    assert all(np.array_equal(row.image, plain) for row in rows)


def test_items_of_a_record(builder: RowBuilder, picture: ImageRecord, text_record: TextRecord) -> None:
    assert (
        builder.items(picture, "caption") == builder.items(picture, "captioning") == builder.items(picture, "matching") == picture.captions
    )
    assert builder.items(picture, "question") == builder.items(picture, "vqa") == picture.questions
    assert builder.items(dataclasses.replace(picture, captions=()), "matching") == picture.questions
    assert builder.items(picture, "grounding") == builder.items(picture, "grounded_captioning") == picture.regions
    assert builder.items(picture, "detection") == (Objects(picture.objects),)
    assert builder.items(picture, "image_infilling") == (Codes(tuple(range(63, 47, -1))),)
    assert builder.items(text_record, "text_infilling") == (Passage(text_record.text),)


@pytest.mark.parametrize("task", PRETRAINING_TASKS)
def test_evaluation_examples(
    task: str, builder: RowBuilder, block: Blocks, picture: ImageRecord, text_record: TextRecord, tokenizer: Tokenizer
) -> None:
    record = text_record if task == "text_infilling" else picture
    made = block("text_infilling" if task == "text_infilling" else "caption", augment="scale_jitter")
    for index in range(len(builder.items(record, task))):
        found, again = (builder.build_one(made, task, "scenes", record, index, np.random.default_rng(3)) for _ in range(2))
        assert found.sequence == again.sequence and TASK_NAMES[found.sequence.task_id] == task == found.example.task
        assert len(found.scored) == len(found.sequence.target_ids)
        if task == "text_infilling":
            assert found.image is None and 0 < sum(found.scored) < len(found.scored)
            visible = [token for token, scored in zip(found.sequence.target_ids, found.scored, strict=True) if not scored]
            assert [token for token in found.sequence.source_ids if token != tokenizer.mask_id][-2 - len(visible) : -2] != []
        else:
            assert all(found.scored) and found.hole == (task == "image_infilling")
            assert np.array_equal(found.image, transform("resize", decode_image(picture.image), (), 64, np.random.default_rng(0)).image)
    with pytest.raises(IndexError):
        builder.build_one(made, task, "scenes", record, 99, np.random.default_rng(0))


def test_truth_is_in_pixels_of_the_network_input(builder: RowBuilder, block: Blocks, picture: ImageRecord) -> None:
    region = builder.build_one(block("grounding"), "grounding", "scenes", picture, 0, np.random.default_rng(0)).item
    assert isinstance(region, Region) and region.box == pytest.approx((4, 4, 32, 32))
    objects = builder.build_one(block("detection"), "detection", "scenes", picture, 0, np.random.default_rng(0)).item
    assert isinstance(objects, Objects) and [found.label for found in objects.objects] == ["dog", "traffic light"]
    assert objects.objects[1].box == pytest.approx((50, 0, 64, 64))


@pytest.mark.parametrize("row", IMAGE_ROWS)
def test_records_without_the_annotation_are_rejected(row: str, builder: RowBuilder, block: Blocks, picture: ImageRecord) -> None:
    bare = dataclasses.replace(picture, captions=(), regions=(), questions=(), objects=(), codes=None)
    with pytest.raises(RecordError, match=rf"scenes record picture-1: field \w+: found none, expected at least one for {row}"):
        builder(block(row), SourceConfig("scenes", row), bare, np.random.default_rng(0))


def test_pictures_that_cannot_be_used_are_rejected(builder: RowBuilder, block: Blocks, picture: ImageRecord) -> None:
    for damaged, message in (
        (dataclasses.replace(picture, image=picture.image[:40]), "field image: found 40 bytes"),
        (dataclasses.replace(picture, width=96, height=128), "field width, height: found 96x128, expected the picture's 128x96"),
    ):
        with pytest.raises(RecordError, match=message) as error:
            builder(block("caption"), SourceConfig("scenes", "caption"), damaged, np.random.default_rng(0))
        assert error.value.reason == "image"


def test_what_does_not_go_together(
    builder: RowBuilder, block: Blocks, picture: ImageRecord, text_record: TextRecord, vocab: VocabConfig, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ConfigError, match="dataset prose: found text records, expected image records for caption"):
        builder(block("caption"), SourceConfig("prose", "caption"), text_record, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="dataset scenes: found image records, expected text records for text_infilling"):
        builder(block("text_infilling"), SourceConfig("scenes", "text_infilling"), picture, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="row: found 'captions', expected one of caption, question"):
        builder.items(picture, "captions")
    with pytest.raises(ConfigError, match=r"vocab\.num_text: found 77, expected the tokeniser's 401"):
        RowBuilder(dataclasses.replace(vocab, num_text=77), tokenizer, {}, transform)
    mixed = dataclasses.replace(block("caption"), sources=(SourceConfig("a", "caption"), SourceConfig("b", "detection")))
    with pytest.raises(ConfigError, match="data.blocks block: found caption 2, detection 1 sequences per row, expected one number"):
        sequences_per_row(mixed)


@pytest.mark.skipif("OFA_BPE_DIR" not in os.environ, reason="OFA_BPE_DIR does not name the folder of OFA's dict.txt")
def test_ids_of_the_released_checkpoints(block: Blocks, picture: ImageRecord, text_record: TextRecord) -> None:
    vocab = VocabConfig(path=str(Path(os.environ["OFA_BPE_DIR"]) / "dict.txt"))
    build = RowBuilder(vocab, load_tokenizer(vocab), {}, transform)

    def source(task: str) -> list[int]:
        record = text_record if task == "text_infilling" else picture
        made = block("text_infilling" if task == "text_infilling" else "caption", image_px=384)
        return build.build_one(made, task, "scenes", record, 0, np.random.default_rng(1)).sequence.source_ids

    assert source("captioning") == [0, 99, 473, 5, 2274, 6190, 116, 2]
    assert source("detection") == [0, 99, 32, 5, 8720, 11, 5, 2274, 116, 2]
    assert source("image_infilling") == [0, 99, 16, 5, 2274, 11, 5, 1692, 233, 116, 2]
    grounding = source("grounding")
    assert grounding[:7] == [0, 61, 976, 473, 5, 2788, 22] and grounding[-4:] == [22, 6190, 116, 2]
    # 8,6,64,48 of 128 x 96 is 24,24,192,192 of 384 px: bins 47 and 375 of the canvas of 512 px.
    bins = [58457 + b for b in (47, 47, 375, 375)]
    assert source("grounded_captioning") == [0, 1437, 99, 473, 5, 976, 6190, 116, 976, 35, *bins, 2]
    infilling = source("text_infilling")
    assert infilling[:8] == [0, 99, 16, 5, 1498, 2788, 9, 22] and infilling[-3:] == [22, 116, 2] and 50264 in infilling
