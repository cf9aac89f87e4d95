"""Real records in memory, and a small row builder, for the tests of the data pipeline. Worker processes import this module."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ofa_jax.config.schema import BlockConfig, DataConfig, SourceConfig
from ofa_jax.data.batch import Row, Sequence
from ofa_jax.data.records import Caption, ImageRecord, Record, RecordError, TextRecord
from ofa_jax.data.transforms.image import decode_image, transform

PX = 16
LENGTHS = {"shapes": 23, "letters": 11, "prose": 40}
BAD_RECORDS = {("shapes", 3), ("shapes", 4), ("prose", 0)}


def png(number: int) -> bytes:
    """A real PNG file of 20 x 12 pixels whose colours tell its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class MemorySource:
    """A RecordSource over records that are made when they are read."""

    def __init__(self, dataset: str):
        self._dataset = dataset

    def __len__(self) -> int:
        return LENGTHS[self._dataset]

    def __getitem__(self, index: int) -> Record:
        name = f"{self._dataset}-{index}"
        if self._dataset == "prose":
            return TextRecord(name, self._dataset, f"text number {index}")
        number = index + 1000 * len(self._dataset)
        return ImageRecord(name, self._dataset, png(number), 20, 12, captions=(Caption(f"picture {index}"),))

    def read(self, indices: list[int]) -> list[Record]:
        return [self[index] for index in indices]


class DamagedSource(MemorySource):
    """The same records, some of which are content errors."""

    def __getitem__(self, index: int) -> Record:
        if (self._dataset, index) in BAD_RECORDS:
            raise RecordError(
                dataset=self._dataset, record=f"#{index}", reason="schema", field="text", found="nothing", expected="some text"
            )
        return super().__getitem__(index)


def open_memory(source: SourceConfig) -> MemorySource:
    return MemorySource(source.dataset)


def open_damaged(source: SourceConfig) -> DamagedSource:
    return DamagedSource(source.dataset)


def build_row(block: BlockConfig, source: SourceConfig, record: Record, draw: np.random.Generator) -> Row:
    """Two sequences a picture, one a text: ids that tell the record apart, and one random id."""
    number = int(record.record_id.split("-")[1])
    noise = int(draw.integers(100, 1000))
    if isinstance(record, TextRecord):
        return Row(None, False, (Sequence([0, 50 + number, noise, 2], [50 + number], 2.0, False, 7, 0),))
    picture = transform(block.augment, decode_image(record.image), (), block.image_px, draw)
    first = Sequence([0, 50 + number, noise, 2], [50 + number, 10, 11], 1.0, False, 0, 0)
    second = Sequence([0, 50 + number, 2], [20], 0.5, False, 1, 0)
    return Row(picture.image, False, (first, second))


def data_config(**changes: object) -> DataConfig:
    """Fourteen rows of pictures (two sources, 3 : 1) and fourteen of text."""
    pairs = BlockConfig(
        "pairs", "pairs", rows=14, source_len=6, target_len=5, image_px=PX, augment="random_resize_crop",
        sources=(SourceConfig("shapes", "caption", 0.75), SourceConfig("letters", "caption", 0.25)),
    )  # fmt: skip
    texts = BlockConfig("texts", "text", rows=14, source_len=6, target_len=5, sources=(SourceConfig("prose", "text_infilling"),))
    return DataConfig(**({"blocks": (pairs, texts), "prefetch": 3} | changes))
