"""RandAugment: every operation against a plain loop or float64 formula, the draws, and which rows it changes."""

from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ofa_jax.config.schema import BlockConfig, SourceConfig, VocabConfig
from ofa_jax.data.records import Box, Caption, ImageRecord, Question, Region
from ofa_jax.data.transforms import randaugment
from ofa_jax.data.transforms.image import transform
from ofa_jax.data.transforms.randaugment import OPERATIONS, rand_augment
from ofa_jax.tasks.base import Negatives
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.tasks.table import INSTRUCTIONS
from ofa_jax.vocab import sentencepiece
from ofa_jax.vocab.tokenizer import load_tokenizer


def photograph(height: int = 24, width: int = 30, low: int = 20, high: int = 200) -> np.ndarray:
    """Smooth shapes and noise; none of the three channels reaches 0 or 255."""
    generator = np.random.default_rng(3)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(rows / 5 + c) * np.cos(columns / (4 + c)) for c in range(3)], axis=-1)
    return (low + (high - low) * (waves + 1) / 2 + generator.integers(-8, 9, waves.shape)).clip(low, high).astype(np.uint8)


PICTURES = [photograph(), photograph(17, 9, 100, 140), np.full((8, 8, 3), 77, np.uint8), photograph(3, 40, 0, 255), photograph(40, 1)]


def plain_autocontrast(image: np.ndarray) -> np.ndarray:
    result = image.copy()
    for c in range(3):
        low, high = int(image[..., c].min()), int(image[..., c].max())
        if high > low:
            for place in np.ndindex(image.shape[:2]):
                level = int(image[(*place, c)]) * (255.0 / (high - low)) - low * (255.0 / (high - low))
                result[(*place, c)] = int(min(max(level, 0), 255))
    return result


def plain_equalize(image: np.ndarray) -> np.ndarray:
    result = image.copy()
    for c in range(3):
        count = Counter(image[..., c].ravel().tolist())
        step = (image[..., c].size - count[max(count)]) // 255
        if step:
            table, below = {}, step // 2
            for level in range(256):
                table[level] = min(below // step, 255)
                below += count[level]
            for place in np.ndindex(image.shape[:2]):
                result[(*place, c)] = table[int(image[(*place, c)])]
    return result


def plain_brightness(image: np.ndarray) -> np.ndarray:
    return np.floor((image.astype(np.float64) * 1.36 + 1e-6).clip(0, 255)).astype(np.uint8)


def plain_sharpness(image: np.ndarray) -> np.ndarray:
    result = image.copy()
    weights = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float64) / 13
    for y in range(1, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 1):
            smooth = np.floor((image[y - 1 : y + 2, x - 1 : x + 2] * weights[..., None]).sum((0, 1)) + 0.5)
            result[y, x] = np.floor((smooth + 1.36 * (image[y, x] - smooth) + 1e-6).clip(0, 255))
    return result


@pytest.mark.parametrize("image", PICTURES)
@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("AutoContrast", plain_autocontrast),
        ("Equalize", plain_equalize),
        ("Brightness", plain_brightness),
        ("Sharpness", plain_sharpness),
    ],
)
def test_tones_equal_the_plain_formula(name, plain, image: np.ndarray):
    """Equal in every pixel, whatever the sign, which tones have not; the input stays as it was."""
    before = image.copy()
    for sign in (-1.0, 1.0):
        np.testing.assert_array_equal(OPERATIONS[name](image, sign), plain(image))
    np.testing.assert_array_equal(image, before)


def test_equalize_of_a_picture_large_enough_to_have_steps():
    image = photograph(96, 80)
    found = randaugment.equalize(image)
    np.testing.assert_array_equal(found, plain_equalize(image))
    assert found.min() == 0 and found.max() == 255


def plain_warp(image: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Linear interpolation in float64: `forward` (2 x 3) takes places (x, y) of `image` to places of the result; grey outside."""
    height, width = image.shape[:2]
    backward = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
    result = np.empty(image.shape)

    def level(y: int, x: int) -> np.ndarray:
        return image[y, x].astype(np.float64) if 0 <= y < height and 0 <= x < width else np.full(3, 128.0)

    for y in range(height):
        for x in range(width):
            from_x, from_y, _ = backward @ [x, y, 1]
            left, top = math.floor(from_x), math.floor(from_y)
            right, down = from_x - left, from_y - top
            upper = (1 - right) * level(top, left) + right * level(top, left + 1)
            lower = (1 - right) * level(top + 1, left) + right * level(top + 1, left + 1)
            result[y, x] = (1 - down) * upper + down * lower
    return result


def turn(degrees: float, width: int, height: int) -> np.ndarray:
    """Counter-clockwise as seen, with y pointing down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return np.array([[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y]])


def forward_of(name: str, sign: float, width: int, height: int) -> np.ndarray:
    return {
        "ShearX": np.array([[1, sign * 0.21, 0], [0, 1, 0]]),
        "ShearY": np.array([[1, 0, 0], [sign * 0.21, 1, 0]]),
        "TranslateX": np.array([[1, 0, -sign * 7], [0, 1, 0]]),
        "TranslateY": np.array([[1, 0, 0], [0, 1, -sign * 7]]),
        "Rotate": turn(sign * 21, width, height),
    }[name]


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "Rotate"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_shear_and_rotation_interpolate_linearly(name: str, sign: float):
    """Within a grey level on smooth pictures: OpenCV may round places to 1/32 of a pixel and levels once more."""
    image = np.add.outer(np.arange(24) * 3, np.arange(30) * 2)[..., None] + np.array([20, 40, 60])
    image = image.astype(np.uint8)
    found, plain = OPERATIONS[name](image, sign), plain_warp(image, forward_of(name, sign, 30, 24))
    covered = plain_warp(np.full((24, 30, 3), 255, np.uint8), forward_of(name, sign, 30, 24))
    inside, outside = (covered >= 254.99).all(-1), (covered <= 128.01).all(-1)
    assert inside.mean() > 0.5 and outside.any()
    assert np.abs(found.astype(float) - plain)[inside].max() <= 1
    assert (found[outside] == 128).all()
    # On the seam of picture and grey a level may differ by 1/32 of the contrast, which is 108 here at most.
    assert np.abs(found.astype(float) - plain).max() <= 1 + 108 / 32


@pytest.mark.parametrize("name", ["TranslateX", "TranslateY"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_translation_is_by_whole_pixels(name: str, sign: float):
    for image in (photograph(), photograph(4, 5)):  # the second leaves the window
        height, width = image.shape[:2]
        np.testing.assert_array_equal(OPERATIONS[name](image, sign), plain_warp(image, forward_of(name, sign, width, height)))


def test_directions():
    """Positive signs: left, up, counter-clockwise; shear moves the bottom right and the right side down."""
    image = np.full((64, 64, 3), 10, np.uint8)
    image[30:34, 44:52] = 250  # right of the centre

    def centre(found: np.ndarray) -> tuple[float, float]:
        rows, columns = np.nonzero(found[..., 0] > 190)
        return rows.mean(), columns.mean()

    row, column = centre(image)
    assert centre(OPERATIONS["TranslateX"](image, 1.0)) == (row, column - 7)
    assert centre(OPERATIONS["TranslateY"](image, 1.0)) == (row - 7, column)
    assert centre(OPERATIONS["Rotate"](image, 1.0))[0] < row - 4
    assert centre(OPERATIONS["ShearX"](image, 1.0))[1] > column + 5
    assert centre(OPERATIONS["ShearY"](image, 1.0))[0] > row + 8


def test_the_operations_are_the_official_ones():
    expected = ["Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"]
    assert list(OPERATIONS) == expected


def test_draws(monkeypatch: pytest.MonkeyPatch):
    """Two draws with replacement, every operation as often, applied half of the time, both signs, and as many numbers every time."""
    calls: list[tuple[int, float]] = []
    marked = [lambda image, sign, i=i: (calls.append((i, sign)), image)[1] for i in range(10)]
    monkeypatch.setattr(randaugment, "_OPERATIONS", tuple(marked))
    applied: Counter[int] = Counter()
    signs: Counter[tuple[int, float]] = Counter()
    lengths: Counter[int] = Counter()
    repeated = 0
    draw = np.random.default_rng(0)
    trials = 8000
    for _ in range(trials):
        calls.clear()
        rand_augment(PICTURES[0], draw)
        lengths[len(calls)] += 1
        signs.update(calls)
        applied.update(index for index, _ in calls)
        repeated += len(calls) == 2 and calls[0][0] == calls[1][0]

    def near(count: int, share: float) -> bool:  # five standard deviations
        return abs(count - trials * share) < 5 * math.sqrt(trials * share * (1 - share))

    assert near(lengths[0], 0.25) and near(lengths[1], 0.5) and near(lengths[2], 0.25)
    assert all(near(applied[i], 2 * 0.1 * 0.5) for i in range(10))
    assert all(near(signs[i, sign], 0.05) for i in range(10) for sign in (-1.0, 1.0))
    assert near(repeated, 0.25 * 0.1)
    used = set()
    for seed in range(30):
        draw, same = np.random.default_rng(seed), np.random.default_rng(seed)
        rand_augment(PICTURES[0], draw)
        same.integers(10, size=2), same.random((2, 2))
        used.add(draw.random() == same.random())
    assert used == {True}


def test_pictures_have_draws_of_their_own():
    """The official code gives all pictures of an epoch the same operations."""
    image = photograph(64, 64)
    results = [rand_augment(image, np.random.default_rng([1, element])) for element in range(40)]
    again = [rand_augment(image, np.random.default_rng([1, element])) for element in range(40)]
    assert all(np.array_equal(a, b) for a, b in zip(results, again, strict=True))
    assert len({result.tobytes() for result in results}) > 15
    assert all(result.shape == image.shape and result.dtype == np.uint8 and result.flags.c_contiguous for result in results)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> RowBuilder:
    path = tmp_path_factory.mktemp("randaugment") / "tokenizer.model"
    num_text = sentencepiece.train([*INSTRUCTIONS, "a dog on the left of a cat, and nobody knows why it is red"] * 3, path, 300)
    vocab = VocabConfig(tokenizer="sentencepiece", path=str(path), num_text=num_text, num_codes=64, num_bins=100, canvas_px=64)
    negatives = Negatives(captions=("a cat", "a dog"), objects=("cat", "dog"), answers={"other": ("red", "left")})
    return RowBuilder(vocab, load_tokenizer(vocab), {"d": negatives}, transform)


@pytest.fixture(scope="module")
def record() -> ImageRecord:
    file = io.BytesIO()
    Image.fromarray(photograph(80, 100)).save(file, "PNG")
    return ImageRecord(
        "r/1", "d", file.getvalue(), 100, 80, captions=(Caption("a dog"),), questions=(Question("what is red?", "dog"),),
        regions=(Region("the dog", Box(10, 10, 60, 50)),), codes=np.arange(16, dtype=np.int32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "augmented"),
    [("caption", True), ("question", True), ("grounding", False), ("image_infilling", False)],
)
def test_only_captions_and_questions_are_augmented(builder: RowBuilder, record: ImageRecord, row: str, augmented: bool):
    changed = 0
    source = SourceConfig("d", row)
    for seed in range(30):
        pictures = []
        for on in (False, True):
            block = BlockConfig("b", "pairs", 1, 64, 64, (source,), image_px=64, augment="random_resize_crop", rand_augment=on)
            pictures.append(builder(block, source, record, np.random.default_rng(seed)).image)
        plain, found = pictures
        assert found.shape == (64, 64, 3) and found.dtype == np.uint8
        changed += not np.array_equal(plain, found)
        if augmented:
            expected = np.random.default_rng(seed)
            whole = transform("random_resize_crop", photograph(80, 100), [], 64, expected).image
            np.testing.assert_array_equal(found, rand_augment(whole, expected))
    assert (5 < changed < 28) if augmented else changed == 0


def test_evaluation_never_augments(builder: RowBuilder, record: ImageRecord):
    block = BlockConfig("b", "pairs", 1, 64, 64, (SourceConfig("d", "caption"),), image_px=64, rand_augment=True)
    plain = transform("resize", photograph(80, 100), [], 64, np.random.default_rng(0)).image
    for seed in range(10):
        found = builder.build_one(block, "captioning", "d", record, 0, np.random.default_rng(seed)).image
        np.testing.assert_array_equal(found, plain)
