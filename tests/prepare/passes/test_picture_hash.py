"""Perceptual hashes: copies of a picture are found, other pictures are not."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import simplejpeg
from made_tars import picture

from ofa_jax.data.transforms.image import decode_image
from ofa_jax.prepare.builders import scenes
from ofa_jax.prepare.passes.options import BuildOptions
from ofa_jax.prepare.picture_hash import BITS, COLOURS, NONE, HashTable, crops, mean_colours, perceptual_hash, short_digest

MOST_BITS = BuildOptions.leak_bits
LOOKED_FOR = 60


def table(count: int, looks: Callable[[int], np.ndarray]) -> HashTable:
    """Returns the table of `count` pictures, as `evaluation_pictures.write_table` makes it."""
    parts, owners = [], []
    for number in range(count):
        found = list(crops(looks(number)))
        parts += found
        owners += [number] * len(found)
    return HashTable(*seen(parts), np.array(owners))


def seen(pictures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([perceptual_hash(one) for one in pictures]), np.array([mean_colours(one) for one in pictures])


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    return decode_image(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality))


def scaled(pixels: np.ndarray, factor: float) -> np.ndarray:
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=how)


def cropped(pixels: np.ndarray, most: float, draw: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    left, top, right, bottom = draw.uniform(0, most, 4)
    return pixels[round(height * top) : height - round(height * bottom), round(width * left) : width - round(width * right)]


def copies(pixels: np.ndarray, draw: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "encoded again": jpeg(pixels, int(draw.integers(25, 90))),
        "smaller": jpeg(scaled(pixels, draw.uniform(0.4, 0.9)), 80),
        "larger": jpeg(scaled(pixels, draw.uniform(1.1, 2.0)), 80),
        "a square": cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_CUBIC),
        "cropped": jpeg(cropped(pixels, 0.04, draw), 80),
        "cropped and smaller": jpeg(scaled(cropped(pixels, 0.04, draw), 0.6), 70),
    }


def natural(number: int) -> np.ndarray:
    return picture(number // 1000, number % 1000)


MAKER = scenes.SceneMaker(scenes.ScenesOptions())


def drawn(number: int) -> np.ndarray:
    """A scene of the quickstart: a few drawings on nearly white, harder to tell apart than photographs."""
    return MAKER.make("train", number).image


@pytest.mark.parametrize("looks", [natural, drawn])
def test_copies_are_found(looks: Callable[[int], np.ndarray]):
    draw, found, total = np.random.default_rng(0), {}, 0
    known = table(LOOKED_FOR, looks)
    for number in range(LOOKED_FOR):
        made = copies(looks(number), draw)
        owner, _ = known.match(*seen(list(made.values())), most_bits=MOST_BITS)
        for name, who in zip(made, owner, strict=True):
            assert who in (number, -1), "another picture was taken for it"
            found[name] = found.get(name, 0) + (who == number)
        total += len(made)
    assert sum(found.values()) / total >= 0.95, found
    assert min(found[name] for name in ("encoded again", "smaller", "larger", "a square")) >= 0.98 * LOOKED_FOR, found


@pytest.mark.parametrize("looks", [natural, drawn])
@pytest.mark.parametrize("others", [600, pytest.param(12_000, marks=pytest.mark.full)])
def test_other_pictures_are_not_found(others: int, looks: Callable[[int], np.ndarray]):
    """Fewer than one in ten thousand, of which the long run says something."""
    known = table(LOOKED_FOR, looks)
    owner, bits = known.match(*seen([looks(1000 + number) for number in range(others)]), most_bits=MOST_BITS)
    assert (owner >= 0).sum() / others < 1e-4, bits.min()


def test_the_nearest_entry_is_given_and_flat_pictures_never():
    hashes = np.array([perceptual_hash(picture(0, number)) for number in range(3)])
    near = hashes[1].copy()
    near[0] ^= np.uint64(0b111)
    colours = np.full((4, COLOURS), 100, np.uint8)
    known = HashTable(np.array([hashes[0], near, hashes[2], NONE]), colours, np.array([10, 11, 12, 13]))
    owner, bits = known.match(np.array([hashes[1], hashes[2], NONE]), colours[:3] + 8, most_bits=MOST_BITS)
    assert owner.tolist() == [11, 12, -1] and bits.tolist() == [3, 0, BITS + 1]
    assert len(known) == 3 and not perceptual_hash(np.full((40, 40, 3), 200, np.uint8)).any()
    assert known.match(hashes, colours[:3] + 12, most_bits=MOST_BITS)[0].tolist() == [-1, -1, -1]  # of other colours
    empty = HashTable(np.zeros((0, 4), np.uint64), np.zeros((0, COLOURS), np.uint8), np.zeros(0, np.int64))
    assert empty.match(hashes, colours[:3], most_bits=256)[0].tolist() == [-1, -1, -1]


def test_digests_are_never_nothing():
    assert short_digest(b"a") != short_digest(b"b") and short_digest(b"") > 0
