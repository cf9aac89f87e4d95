"""The transforms of OFA's pretraining, pixels and boxes, against plain float64 code written from their definitions.

Pixels agree within 2 grey levels: Pillow rounds to whole levels after each of the two passes of a resize, and its filter weights to 22
bits.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from ofa_jax.data.records import Box
from ofa_jax.data.transforms import image as image_module
from ofa_jax.data.transforms.image import transform

PX = 32


def cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """[new, old]; the filter is as wide as a new pixel where the picture shrinks (antialiasing)."""
    scale = old / new
    width = max(scale, 1.0)
    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * scale
        for j in range(max(0, int(centre - 2 * width + 0.5)), min(old, int(centre + 2 * width + 0.5))):
            weights[i, j] = cubic((j + 0.5 - centre) / width)
        weights[i] /= weights[i].sum()
    return weights


def plain_resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    across = np.einsum("xw,hwc->hxc", bicubic_weights(image.shape[1], width), image.astype(np.float64)).clip(0, 255)
    return np.einsum("yh,hxc->yxc", bicubic_weights(image.shape[0], height), across).clip(0, 255)


def picture(width: int, height: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(columns / 5 + c) * np.cos(rows / (3 + c)) for c in range(3)]
    noise = np.random.default_rng(width).normal(0, 12, (height, width, 3))
    return (128 + 100 * np.stack(waves, axis=-1) + noise).clip(0, 255).astype(np.uint8)


def close(found: np.ndarray, plain: np.ndarray) -> bool:
    return found.shape == plain.shape and bool((np.abs(found.astype(float) - plain) <= 2).all())


def random_resize(width: int, height: int, seed: int) -> tuple[int, int]:
    """(width, height) after RandomResize for 32 px: a shorter side of 32 to 40, both sides at most 56."""
    shorter = int(np.random.default_rng(seed).integers(32, 41))
    longer = int(shorter * max(width, height) / min(width, height))
    sides = (shorter, longer) if width <= height else (longer, shorter)
    return min(sides[0], 56), min(sides[1], 56)


@pytest.mark.parametrize("size", [(60, 44), (44, 90), (20, 16), (150, 33)])
def test_random_resize_and_centre_crop(size: tuple[int, int]):
    image = picture(*size)
    for seed in range(8):
        width, height = random_resize(*size, seed)
        left, top = round((width - PX) / 2), round((height - PX) / 2)
        plain = plain_resize(image, width, height)[top : top + PX, left : left + PX]
        assert close(transform("random_resize_crop", image, [], PX, np.random.default_rng(seed)).image, plain)


@pytest.mark.parametrize("size", [(60, 44), (44, 90), (20, 16), (150, 33)])
@pytest.mark.parametrize("share", [(0.1, 0.1, 0.4, 0.3), (0.3, 0.4, 0.8, 0.5), (0.0, 0.0, 1.0, 1.0), (0.9, 0.85, 1.0, 1.0)])
def test_object_centre_crop(size: tuple[int, int], share: tuple[float, ...]):
    """The window lies around the centre of the box, inside the picture; the box moves with the pixels and is clipped."""
    image = picture(*size)
    box = Box(*(s * side for s, side in zip(share, (*size, *size), strict=True)))
    for seed in range(4):
        width, height = random_resize(*size, seed)
        x0, y0, x1, y1 = (s * side for s, side in zip(share, (width, height, width, height), strict=True))
        left = round(min(max((x0 + x1) / 2 - PX / 2, 0), width - PX))
        top = round(min(max((y0 + y1) / 2 - PX / 2, 0), height - PX))
        found = transform("random_resize_crop", image, [box], PX, np.random.default_rng(seed))
        assert close(found.image, plain_resize(image, width, height)[top : top + PX, left : left + PX])
        assert found.kept == (0,)
        expected = [min(max(place, 0), PX) for place in (x0 - left, y0 - top, x1 - left, y1 - top)]
        np.testing.assert_allclose(tuple(found.boxes[0]), expected, atol=1e-9)


@pytest.mark.parametrize("size", [(640, 480), (333, 517), (96, 70), (50, 1000)])
def test_a_window_is_resized_as_the_whole_picture(size: tuple[int, int]):
    image = picture(*size)
    for seed in range(6):
        draw = np.random.default_rng(seed)
        width, height = (int(draw.integers(PX, 700)) for _ in range(2))
        left, top = int(draw.integers(width - PX + 1)), int(draw.integers(height - PX + 1))
        found, _ = image_module._resize_crop(image, [], width=width, height=height, left=left, top=top, px=PX)
        whole = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(found, whole[top : top + PX, left : left + PX])


@pytest.mark.parametrize("size", [(60, 44), (44, 90), (20, 16)])
def test_large_scale_jitter(size: tuple[int, int]):
    """Mirror, a shorter side of round(32 r), crop at whole pixels; boxes without an area are dropped."""
    image = picture(*size)
    boxes = [Box(0, 0, size[0] / 8, size[1] / 8), Box(size[0] * 0.3, size[1] * 0.2, size[0] * 0.7, size[1] * 0.9)]
    for seed in range(12):
        flip, r, down, right = np.random.default_rng(seed).random(4)
        shorter = round(PX * (1 + r / 2))
        scale = shorter / min(size)
        width, height = round(size[0] * scale), round(size[1] * scale)
        top, left = math.floor(down * (height - PX)), math.floor(right * (width - PX))
        source = image[:, ::-1] if flip < 0.5 else image
        plain = plain_resize(source, width, height)[top : top + PX, left : left + PX]
        moved = []
        for box in boxes:
            x0, x1 = (size[0] - box.x1, size[0] - box.x0) if flip < 0.5 else (box.x0, box.x1)
            x0, x1 = (min(max(x * width / size[0] - left, 0), PX) for x in (x0, x1))
            y0, y1 = (min(max(y * height / size[1] - top, 0), PX) for y in (box.y0, box.y1))
            moved.append((x0, y0, x1, y1))
        found = transform("scale_jitter", image, boxes, PX, np.random.default_rng(seed))
        assert close(found.image, plain)
        assert found.kept == tuple(i for i, (x0, y0, x1, y1) in enumerate(moved) if x1 > x0 and y1 > y0)
        np.testing.assert_allclose([tuple(box) for box in found.boxes], [moved[i] for i in found.kept], atol=1e-9)
