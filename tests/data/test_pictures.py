"""Rows that are pictures alone: their blocks, and squares cut at random."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import BlockConfig, SourceConfig
from ofa_jax.data.batch import Row, collate
from ofa_jax.data.pictures import picture_row
from ofa_jax.data.records import Box, ImageRecord, RecordError, TextRecord
from ofa_jax.data.transforms.image import transform

SOURCE = SourceConfig("d", "picture")
BLOCK = BlockConfig("pictures", "pictures", 4, 0, 0, (SOURCE,), image_px=16, augment="random_crop")
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)


def record(width: int = 40) -> ImageRecord:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return ImageRecord("a/1", "d", file.getvalue(), width, 24)


def test_a_block_of_pictures_has_no_sequences():
    rows = [picture_row(BLOCK, SOURCE, record(), np.random.default_rng(seed)) for seed in range(4)]
    block = collate(rows, BLOCK, range(4))
    assert block.images.shape == (4, 16, 16, 3) and block.images.dtype == np.uint8
    assert block.source_ids.shape == block.target_ids.shape == (0, 0) and len(block.task_ids) == 0
    assert not (block.images[0] == block.images[1]).all()
    with pytest.raises(ValueError, match="found no sequences"):
        collate([Row(rows[0].image, False, ())], BlockConfig("x", "images", 1, 4, 4, (), image_px=16), [0])


def test_a_random_crop_is_a_square_of_the_picture_or_of_its_mirror_image():
    windows = {PIXELS[t : t + 16, x : x + 16].tobytes(): (t, x) for t in range(9) for x in range(25)}
    mirrored = {PIXELS[:, ::-1][t : t + 16, x : x + 16].tobytes(): (t, x) for t in range(9) for x in range(25)}
    found = [transform("random_crop", PIXELS, [], 16, np.random.default_rng(seed)).image.tobytes() for seed in range(200)]
    assert all(one in windows or one in mirrored for one in found)
    assert {windows[one][0] for one in found if one in windows} == set(range(9)), "every row of the picture can be the first"
    assert 60 < sum(one in mirrored for one in found) < 140


def test_boxes_follow_a_random_crop_and_small_pictures_are_enlarged():
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:20, 5:15] = 255
    for seed in range(20):
        picture = transform("random_crop", image, [Box(5, 10, 15, 20)], 24, np.random.default_rng(seed))
        for box in picture.boxes:
            inside = picture.image[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]
            assert inside.size and (inside == 255).all() and inside.sum() == picture.image.sum()
    assert transform("random_crop", PIXELS[:8, :12], [], 16, np.random.default_rng(0)).image.shape == (16, 16, 3)


def test_what_is_no_picture_is_a_content_error():
    with pytest.raises(RecordError, match="field width, height: found 41x24, expected the picture's 40x24"):
        picture_row(BLOCK, SOURCE, record(width=41), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="found text records, expected image records for picture"):
        picture_row(BLOCK, SOURCE, TextRecord("b/1", "d", "words"), np.random.default_rng(0))
