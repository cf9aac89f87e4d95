"""A record -> a row that is a picture and nothing else: what a VQGAN learns from."""

from __future__ import annotations

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import BlockConfig, SourceConfig
from ofa_jax.data.batch import Row
from ofa_jax.data.records import ImageRecord, Record, RecordError
from ofa_jax.data.transforms.image import decode_image, enough_for, stored_size, transform


def picture_row(block: BlockConfig, source: SourceConfig, record: Record, draw: np.random.Generator) -> Row:
    """Returns the row of `block` for a record of `source`: its picture by the block's transform, without sequences.

    Raises RecordError for a picture that does not decode, ConfigError for a record of text.
    """
    if not isinstance(record, ImageRecord):
        raise ConfigError(f"dataset {source.dataset}: found text records, expected image records for {source.row}")
    pixels = decode_picture(record, at_least=enough_for(block.augment, block.image_px))
    return Row(transform(block.augment, pixels, [], block.image_px, draw).image, False, ())


def decode_picture(record: ImageRecord, *, at_least: int = 0) -> np.ndarray:
    """Returns a record's pixels, uint8 [height, width, 3]; with `at_least` maybe smaller, as `decode_image` says, for training alone.

    Raises RecordError when they do not decode or have another size, as stored, than the record says.
    """

    def reject(field: str, found: str, expected: str) -> RecordError:
        return RecordError(dataset=record.dataset, record=record.record_id, reason="image", field=field, found=found, expected=expected)

    try:
        pixels = decode_image(record.image, at_least=at_least)
    except ValueError as error:
        found, _, expected = str(error).removeprefix("found ").rpartition(", expected ")
        raise reject("image", found or str(error), expected) from error
    width, height = stored_size(record.image, pixels) if at_least else (pixels.shape[1], pixels.shape[0])
    if (width, height) != (record.width, record.height):
        raise reject("width, height", f"{record.width}x{record.height}", f"the picture's {width}x{height}")
    return pixels
