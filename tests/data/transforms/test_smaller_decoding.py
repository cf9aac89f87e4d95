"""Large JPEG files decoded at a smaller size for training: sizes, pixels and boxes; everything else comes back as without."""

from __future__ import annotations

import dataclasses
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from ofa_jax.config.schema import BlockConfig, SourceConfig, VocabConfig
from ofa_jax.data.pictures import decode_picture
from ofa_jax.data.records import Box, DetectedObject, ImageRecord, RecordError, Region
from ofa_jax.data.transforms import image as image_module
from ofa_jax.data.transforms.image import Picture, decode_image, enough_for, stored_size, transform
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.tasks.table import INSTRUCTIONS
from ofa_jax.vocab import sentencepiece
from ofa_jax.vocab.tokenizer import load_tokenizer

KINDS = ("resize", "random_resize_crop", "scale_jitter")


def photograph(width: int, height: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    pixels = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        coarse = draw.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        pixels += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * (120 / cells**0.4)
    return (128 + pixels).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 90} if kind == "JPEG" else {}), **options)
    return file.getvalue()


LARGE = encode(photograph(801, 601))


@pytest.mark.parametrize(
    ("at_least", "size"),
    [(0, (801, 601)), (100, (201, 151)), (151, (201, 151)), (152, (301, 226)), (300, (401, 301)), (526, (701, 526)), (600, (801, 601))],
)
def test_the_shorter_side_keeps_what_was_asked(at_least: int, size: tuple[int, int]):
    found = decode_image(LARGE, at_least=at_least)
    assert (found.shape[1], found.shape[0]) == size and stored_size(LARGE, found) == (801, 601)
    assert found.flags.c_contiguous and found.dtype == np.uint8


@pytest.mark.parametrize("at_least", [601, 800, 801, 10_000])
def test_pictures_that_are_small_enough_come_back_bit_by_bit(at_least: int):
    np.testing.assert_array_equal(decode_image(LARGE, at_least=at_least), decode_image(LARGE))


def test_files_of_other_formats_come_whole():
    for data in (encode(photograph(120, 90), "PNG"), encode(photograph(120, 90), "WEBP", lossless=True)):
        np.testing.assert_array_equal(decode_image(data, at_least=10), photograph(120, 90))
    file = io.BytesIO()
    Image.fromarray(photograph(120, 90)).convert("CMYK").save(file, "JPEG")
    np.testing.assert_array_equal(decode_image(file.getvalue(), at_least=10), decode_image(file.getvalue()))


def test_640_x_480_is_never_reduced_at_384_px():
    assert enough_for("random_resize_crop", 384) == 960 and enough_for("random_resize_crop", 480) == 960
    assert enough_for("scale_jitter", 256) == 768 and enough_for("resize", 256) == 512 and enough_for("random_crop", 256) == 0


def test_grey_and_truncated_files():
    grey = encode(photograph(400, 300)[..., 0])
    assert decode_image(grey, at_least=70).shape == (75, 100, 3)
    with pytest.raises(ValueError, match="does not decode"):
        decode_image(LARGE[: len(LARGE) // 2], at_least=100)


def test_too_many_pixels_are_counted_as_stored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_module, "MAX_PIXELS", 801 * 601 - 1)
    with pytest.raises(ValueError, match="801 x 601 pixels are more"):
        decode_image(LARGE, at_least=10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(801, 601), (500, 1203), (640, 640)])
def test_network_inputs_agree_with_exact_decoding(kind: str, size: tuple[int, int]):
    """Sides are rounded up, which stretches a picture whose sides are no multiples of 8 by up to a decoded pixel: 0.6 % of 160 here."""
    width, height = size
    data = encode(photograph(width, height))
    small, whole = decode_image(data, at_least=enough_for(kind, 64)), decode_image(data)
    assert small.size < whole.size / 2
    scale_x, scale_y = small.shape[1] / width, small.shape[0] / height
    box = Box(width * 0.3, height * 0.2, width * 0.8, height * 0.7)
    scaled = Box(box.x0 * scale_x, box.y0 * scale_y, box.x1 * scale_x, box.y1 * scale_y)
    for seed in range(4):
        exact = transform(kind, whole, [box], 64, np.random.default_rng(seed))
        found = transform(kind, small, [scaled], 64, np.random.default_rng(seed))
        shift = np.abs(np.subtract(exact.boxes[0], found.boxes[0])).max()
        assert shift < 1.01
        if shift < 0.01:
            difference = exact.image.astype(float) - found.image
            psnr = 10 * np.log10(255**2 / np.mean(difference**2))
            assert psnr > (48 if width % 8 == height % 8 == 0 else 32)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> VocabConfig:
    path = tmp_path_factory.mktemp("smaller") / "tokenizer.model"
    num_text = sentencepiece.train([*INSTRUCTIONS, "a dog on the left of a cat, and nobody knows why it is red"] * 3, path, 300)
    return VocabConfig(tokenizer="sentencepiece", path=str(path), num_text=num_text, num_codes=64, num_bins=100, canvas_px=64)


def record() -> ImageRecord:
    box = Box(80.1, 60.1, 400.5, 300.5)
    return ImageRecord(
        "r/1", "d", LARGE, 801, 601, regions=(Region("the dog", box),), objects=(DetectedObject("dog", box),),
        codes=np.arange(16, dtype=np.int32),
    )  # fmt: skip


def test_boxes_are_scaled_with_the_picture(vocab: VocabConfig):
    seen: list[tuple[tuple[int, ...], Box | None]] = []

    def look(kind: str, image: np.ndarray, boxes: list[Box], px: int, draw: np.random.Generator) -> Picture:
        seen.append((image.shape, boxes[0] if boxes else None))
        return transform(kind, image, boxes, px, draw)

    build = RowBuilder(vocab, load_tokenizer(vocab), {}, look)

    def block(row: str, augment: str) -> tuple[BlockConfig, SourceConfig]:
        source = SourceConfig("d", row)
        return BlockConfig("b", "pairs", 1, 64, 64, (source,), image_px=64, augment=augment), source

    for row, augment in (("grounding", "random_resize_crop"), ("detection", "scale_jitter")):
        build(*block(row, augment), record(), np.random.default_rng(0))
        shape, box = seen.pop()
        side = enough_for(augment, 64)
        assert shape == decode_image(LARGE, at_least=side).shape and min(shape[:2]) < 400
        x, y = shape[1] / 801, shape[0] / 601
        np.testing.assert_allclose(tuple(box), (80.1 * x, 60.1 * y, 400.5 * x, 300.5 * y))
        # Evaluation and infilling, whose codes belong to the stored picture, read it whole.
        build.build_one(block(row, augment)[0], row, "d", record(), 0, np.random.default_rng(0))
        shape, box = seen.pop()
        assert shape == (601, 801, 3) and tuple(box) == (80.1, 60.1, 400.5, 300.5)
    build(*block("image_infilling", "resize"), record(), np.random.default_rng(0))
    assert seen.pop()[0] == (601, 801, 3)


def test_the_size_is_checked_as_stored():
    assert decode_picture(record(), at_least=100).shape == (151, 201, 3)
    wrong = dataclasses.replace(record(), width=201, height=151, regions=(), objects=())
    with pytest.raises(RecordError, match="found 201x151, expected the picture's 801x601"):
        decode_picture(wrong, at_least=100)
