"""ImageNet's augmentation: every operation against plain arithmetic, the ranges of crops, levels and erased rectangles, and its draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from ofa_jax.config.schema import IMAGENET_DEVIATION, IMAGENET_MEAN
from ofa_jax.data.records import Box
from ofa_jax.data.transforms import imagenet
from ofa_jax.data.transforms.image import enough_for, transform
from ofa_jax.data.transforms.imagenet import FILL, OPERATIONS, crop_window, erase, imagenet_augment, timm_rand_augment
from ofa_jax.data.transforms.randaugment import autocontrast, equalize


def photograph(height: int = 24, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(rows / 5 + c) * np.cos(columns / (4 + c)) for c in range(3)], axis=-1)
    noise = np.random.default_rng(3).integers(-40, 41, waves.shape)
    return (127 + 100 * waves + noise).clip(0, 255).astype(np.uint8)


IMAGE = photograph()


def applied(name: str, magnitude: float, sign: float = 1.0, image: np.ndarray = IMAGE) -> np.ndarray:
    return np.asarray(OPERATIONS[name](Image.fromarray(image), magnitude / 10, sign))


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def grey(image: np.ndarray) -> np.ndarray:
    """Luma of ITU-R 601 in Pillow's fixed point."""
    red, green, blue = (image[..., c].astype(np.int64) for c in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def mixed(weak: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """`weak` at 0, `image` at 1, and on beyond; cut at both ends and rounded down."""
    values = np.float32(weak) + np.float32(factor) * (np.float32(image) - np.float32(weak))
    return values.clip(0, 255).astype(np.uint8)


def test_the_operations_are_those_of_inc1() -> None:
    assert list(OPERATIONS) == [
        "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd", "ColorIncreasing",
        "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
    ]  # fmt: skip


@pytest.mark.parametrize(("magnitude", "mask", "first_inverted", "added"), [(9.0, 0b1000_0000, 26, 99), (7.4, 0b1100_0000, 67, 81)])
def test_operations_on_single_levels(magnitude: float, mask: int, first_inverted: int, added: int) -> None:
    levels = IMAGE.astype(int)
    assert (applied("Invert", magnitude) == 255 - levels).all()
    assert (applied("PosterizeIncreasing", magnitude) == levels & mask).all()
    assert (applied("SolarizeIncreasing", magnitude) == np.where(levels < first_inverted, levels, 255 - levels)).all()
    assert (applied("SolarizeAdd", magnitude) == np.where(levels < 128, np.minimum(levels + added, 255), levels)).all()


def test_the_highest_magnitude() -> None:
    assert not applied("PosterizeIncreasing", 10.0).any(), "no bit is kept"
    assert (applied("SolarizeIncreasing", 10.0) == 255 - IMAGE.astype(int)).all()


@pytest.mark.parametrize(("magnitude", "sign", "factor"), [(9.0, 1.0, 1.81), (9.0, -1.0, 0.19), (8.2, -1.0, 0.262), (10.0, -1.0, 0.1)])
def test_enhancements_mix_with_a_weak_picture(magnitude: float, sign: float, factor: float) -> None:
    weak = {
        "ColorIncreasing": np.repeat(grey(IMAGE)[..., None], 3, axis=-1),
        "ContrastIncreasing": np.full_like(IMAGE, int(grey(IMAGE).mean() + 0.5)),
        "BrightnessIncreasing": np.zeros_like(IMAGE),
    }
    for name, picture in weak.items():
        found = applied(name, magnitude, sign).astype(int)
        assert np.abs(found - mixed(picture, IMAGE, factor)).max() <= 1, name  # whole levels that single precision just misses
        assert (found == mixed(picture, IMAGE, factor)).mean() > 0.99, name


def test_sharpness_leaves_the_border_and_moves_from_the_mean_of_neighbours() -> None:
    dot = np.full((5, 5, 3), 100, np.uint8)
    dot[2, 2] = 152
    # Smoothed: (5 x 152 + 8 x 100) / 13 = 120 in the middle, (152 + 12 x 100) / 13 = 104 around it.
    found = applied("SharpnessIncreasing", 9.0, -1.0, dot)[..., 0]
    assert found[2, 2] == int(120 + 0.19 * 32) and found[1, 1] == found[2, 1] == int(104 - 0.19 * 4) and (found[0] == 100).all()
    assert applied("SharpnessIncreasing", 9.0, 1.0, dot)[2, 2, 0] == int(120 + 1.81 * 32)


def test_contrast_and_histogram_by_channel() -> None:
    ramp = np.repeat(np.array([[50, 101, 152]], np.uint8)[..., None], 3, axis=-1)
    assert applied("AutoContrast", 9.0, 1.0, ramp)[0, :, 0].tolist() == [0, 127, 255]
    assert (applied("AutoContrast", 3.0, -1.0) == applied("AutoContrast", 9.0)).all(), "has no level"
    for image in (IMAGE, photograph(17, 9)):  # OFA's two operations, which have tests of their own, follow Pillow's rules too
        assert (applied("AutoContrast", 9.0, 1.0, image) == autocontrast(image)).all()
        assert (applied("Equalize", 9.0, 1.0, image) == equalize(image)).all()


def test_movements_and_their_fill() -> None:
    wide = photograph(20, 100)
    moved = applied("TranslateXRel", 10.0, 1.0, wide)  # 0.45 of 100 pixels, to the left
    assert (moved[:, :55] == wide[:, 45:]).all() and (moved[:, 55:] == FILL).all()
    moved = applied("TranslateXRel", 10.0, -1.0, wide)
    assert (moved[:, 45:] == wide[:, :55]).all() and (moved[:, :45] == FILL).all()
    tall = photograph(100, 20)
    assert (applied("TranslateYRel", 10.0, 1.0, tall)[:55] == tall[45:]).all()
    flat = np.full((40, 40, 3), 200, np.uint8)
    for name, share in (("ShearX", 0.27 * 20 / 40), ("ShearY", 0.27 * 20 / 40)):  # a triangle of 0.27 a row or column is cut off
        for sign in (-1.0, 1.0):
            outside = (applied(name, 9.0, sign, flat) == FILL).all(axis=-1)
            assert outside.mean() == pytest.approx(share, abs=0.02), name
    corner = flat.copy()
    corner[:10, 30:] = 0  # top right
    turned = applied("Rotate", 9.0, 1.0, corner)  # by 27 degrees, counter-clockwise
    angle = math.radians(27)
    x, y = 14.5 * math.cos(angle) - 14.5 * math.sin(angle), -(14.5 * math.sin(angle) + 14.5 * math.cos(angle))
    assert turned[round(19.5 + y), round(19.5 + x)].max() < 30 and (turned[0, 0] == FILL).all()


def test_crops_have_the_ranges_of_the_recipe() -> None:
    height, width = 300, 400
    windows = [crop_window(height, width, generator(seed)) for seed in range(2_000)]
    shares = np.array([w.height * w.width for w in windows]) / (height * width)
    ratios = np.array([w.width / w.height for w in windows])
    assert shares.min() > 0.078 and shares.max() <= 1 and ratios.min() > 0.74 and ratios.max() < 1.35
    plain = np.random.default_rng(0)
    share, ratio = plain.uniform(0.08, 1, 50_000), np.exp(plain.uniform(math.log(3 / 4), math.log(4 / 3), 50_000))
    fits = (share * height * width * ratio <= width**2) & (share * height * width / ratio <= height**2)
    for found, expected in ((shares, share[fits]), (ratios, ratio[fits])):
        assert np.quantile(found, (0.25, 0.5, 0.75)) == pytest.approx(np.quantile(expected, (0.25, 0.5, 0.75)), abs=0.03)
    assert all(0 <= w.top <= height - w.height and 0 <= w.left <= width - w.width for w in windows)
    tops = np.array([w.top / (height - w.height) for w in windows if w.height < height])
    assert tops.mean() == pytest.approx(0.5, abs=0.03)


def test_a_picture_too_long_for_any_crop_gives_its_middle() -> None:
    assert crop_window(10, 1_000, generator(0)) == (0, 493, 10, 13)  # 4/3 of the height
    assert crop_window(1_000, 9, generator(0)) == (494, 0, 12, 9)  # 3/4 of the height is the width
    assert crop_window(1, 1, generator(0)) == (0, 0, 1, 1)
    assert imagenet_augment(photograph(1, 40), 16, generator(1)).shape == (16, 16, 3)


def test_erased_rectangles_and_their_noise() -> None:
    image = np.full((96, 96, 3), 1, np.uint8)
    erased = [erase(image, generator(seed)) for seed in range(600)]
    assert (image == 1).all()
    changed = [picture for picture in erased if picture is not image]
    assert len(changed) / len(erased) == pytest.approx(0.25, abs=0.05)
    for picture in changed:
        rows, columns = (np.flatnonzero((picture != 1).any(axis=(axis, 2))) for axis in (1, 0))
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.018 < high * wide / 96**2 < 0.345 and 0.28 < high / wide < 3.6
        assert (picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] != 1).mean() > 0.98, "one rectangle, all of it"
    noise = np.concatenate([picture[(picture != 1).any(axis=-1)] for picture in changed]) / 255
    normalised = (noise - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_DEVIATION)
    assert normalised.mean(axis=0) == pytest.approx((0, 0, 0), abs=0.02)
    assert normalised.std(axis=0) == pytest.approx((1, 1, 1), abs=0.05), "cut where a pixel ends"
    assert np.corrcoef(normalised.T)[np.triu_indices(3, 1)] == pytest.approx((0, 0, 0), abs=0.02)


def test_operations_are_drawn_alike_and_levels_around_nine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, float]] = []

    def noted(name: str):
        return lambda picture, level, sign: (seen.append((name, level * 10, sign)), picture)[1]

    monkeypatch.setattr(imagenet, "_OPERATIONS", tuple(noted(name) for name in OPERATIONS))
    for seed in range(6_000):
        timm_rand_augment(IMAGE, generator(seed))
    names, levels, signs = zip(*seen, strict=True)
    assert len(seen) == pytest.approx(6_000, rel=0.03), "two, each half of the time"
    counts = np.array([names.count(name) for name in OPERATIONS])
    assert counts == pytest.approx([len(seen) / 15] * 15, rel=0.2)
    assert np.mean(levels) == pytest.approx(9, abs=0.03) and np.std(levels) == pytest.approx(0.5, abs=0.03) and max(levels) == 10
    assert np.mean(signs) == pytest.approx(0, abs=0.05) and set(signs) == {-1.0, 1.0}


def test_a_picture_is_a_function_of_its_generator() -> None:
    image = photograph(70, 90)
    before = image.copy()
    found = [imagenet_augment(image, 32, generator(seed)) for seed in range(20)]
    assert all((one == imagenet_augment(image, 32, generator(seed))).all() for seed, one in enumerate(found)) and (image == before).all()
    assert all(one.shape == (32, 32, 3) and one.dtype == np.uint8 for one in found)
    assert len({one.tobytes() for one in found}) == 20
    assert (transform("imagenet", image, [], 32, generator(4)).image == found[4]).all()
    with pytest.raises(ValueError, match="picture transform imagenet: found 1 boxes, expected none"):
        transform("imagenet", image, [Box(0, 0, 4, 4)], 32, generator(0))
    assert enough_for("imagenet", 480) == 0, "crops are of the picture as it is stored"
