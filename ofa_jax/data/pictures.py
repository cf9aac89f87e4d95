"""A record -> a row that is a picture and nothing else: what a VQGAN learns from."""

from __future__ import annotations

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import BlockConfig, SourceConfig
from ofa_jax.data.batch import Row
from ofa_jax.data.records import ImageRecord, Record, RecordError
from ofa_jax.data.transforms.image import decode_image, transform


def picture_row(block: BlockConfig, source: SourceConfig, record: Record, draw: np.random.Generator) -> Row:
    """Returns the row of `block` for a record of `source`: its picture by the block's transform, without sequences.

    Raises RecordError for a picture that does not decode, ConfigError for a record of text.
    """
    if not isinstance(record, ImageRecord):
        raise ConfigError(f"dataset {source.dataset}: found text records, expected image records for {source.row}")
    return Row(transform(block.augment, decode_picture(record), [], block.image_px, draw).image, False, ())


def decode_picture(record: ImageRecord) -> np.ndarray:
    """Returns a record's pixels, uint8 [height, width, 3]. Raises RecordError when they do not decode or have another size than the record
    says."""

    def reject(field: str, found: str, expected: str) -> RecordError:
        return RecordError(dataset=record.dataset, record=record.record_id, reason="image", field=field, found=found, expected=expected)

    try:
        pixels = decode_image(record.image)
    except ValueError as error:
        found, _, expected = str(error).removeprefix("found ").rpartition(", expected ")
        raise reject("image", found or str(error), expected) from error
    height, width = pixels.shape[:2]
    if (width, height) != (record.width, record.height):
        raise reject("width, height", f"{record.width}x{record.height}", f"the picture's {width}x{height}")
    return pixels
