"""What OFA's ImageNet recipe does to a training picture, in its order: a random crop, a mirror, two rounds of RandAugment, random erasing.

Source: `data/cv_data/image_classify_dataset.py` of OFA-Sys/OFA. It takes timm's `create_transform` with a bicubic filter,
`rand-m9-mstd0.5-inc1`, erasing (probability 0.25, by pixel, one rectangle) and ImageNet's mean and deviation, and puts OFA's own
RandAugment (N = 2, M = 7; `randaugment`) between timm's and the tensor. timm's ranges, operations and levels were read in its 1.0.31
(`timm/data/{transforms,auto_augment,random_erasing}.py`), and its operations give the same bytes as these on random pictures and levels;
`color_jitter` of the call is without effect there once auto-augment is named.

timm erases after normalisation, with standard normal noise. Pictures are bytes here, so the noise is of that mean and deviation in levels,
rounded and cut to 0 .. 255: normalised again it is the same but for steps of 0.02 and for what lies further out than a pixel can be (below
-1.8 to -2.1, above 2.2 to 2.6, by channel), which is 3 to 4 % of the values.

All draws come from the one generator of the row. timm takes Python's and NumPy's global ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ofa_jax.config.schema import IMAGENET_DEVIATION, IMAGENET_MEAN
from ofa_jax.data.transforms.randaugment import rand_augment
from ofa_jax.data.transforms.resample import resize_window

CROP_AREA = (0.08, 1.0)  # share of the picture
CROP_RATIO = (3 / 4, 4 / 3)  # width over height
TRIES = 10  # to find a crop, or a rectangle, that fits
NUM_OPS = 2  # drawn with replacement
PROBABILITY = 0.5  # that a drawn operation is applied
MAGNITUDE, MAGNITUDE_DEVIATION, LARGEST = 9.0, 0.5, 10.0  # m9, mstd0.5, and timm's `_LEVEL_DENOM`
ERASE_PROBABILITY = 0.25
ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)  # height over width
FILL = (124, 116, 104)  # behind moved pictures: 255 times the mean, rounded


class Window(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


def imagenet_augment(image: np.ndarray, px: int, draw: np.random.Generator) -> np.ndarray:
    """Returns the uint8 [px, px, 3] training picture of uint8 [height, width, 3] RGB pixels, which stay as they are.

    Draws, in this order: crop and mirror, timm's RandAugment, OFA's, the erased rectangle; always as many, but for the noise that fills it.
    """
    window = crop_window(image.shape[0], image.shape[1], draw)
    cut = image[window.top : window.top + window.height, window.left : window.left + window.width]
    resized = resize_window(cut, width=px, height=px, left=0, top=0, columns=px, rows=px)
    if draw.random() < 0.5:
        resized = np.ascontiguousarray(resized[:, ::-1])
    return erase(rand_augment(timm_rand_augment(resized, draw), draw), draw)


def crop_window(height: int, width: int, draw: np.random.Generator) -> Window:
    """Returns the part of a picture that RandomResizedCrop takes: a uniform share of the area, and a ratio whose logarithm is uniform.

    Where none of the tries fits into the picture, the largest central part whose ratio is in the range (timm's
    `RandomResizedCropAndInterpolation`, torchvision's rule).
    """
    tries, places = draw.random((TRIES, 2)).tolist(), draw.random(2)
    for area_share, ratio_share in tries:
        area = _between(CROP_AREA, area_share) * height * width
        ratio = _between_logs(CROP_RATIO, ratio_share)
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            return Window(_place(places[0], height - high), _place(places[1], width - wide), high, wide)
    least, most = CROP_RATIO
    wide = min(width, max(1, round(height * most)))
    high = min(height, max(1, round(width / least)))
    return Window((height - high) // 2, (width - wide) // 2, high, wide)


def timm_rand_augment(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Returns uint8 [height, width, 3] pixels after two of `OPERATIONS`, each applied half of the time at a level of its own, normal
    around 9 and cut to 0 .. 10; the same array where none is applied."""
    chosen = draw.integers(len(OPERATIONS), size=NUM_OPS).tolist()
    coins, levels = draw.random((NUM_OPS, 2)).tolist(), draw.normal(MAGNITUDE, MAGNITUDE_DEVIATION, NUM_OPS).clip(0.0, LARGEST).tolist()
    applied = [(index, level, side) for index, level, (coin, side) in zip(chosen, levels, coins, strict=True) if coin < PROBABILITY]
    if not applied:
        return image
    picture = Image.fromarray(image)
    for index, level, side in applied:
        picture = _OPERATIONS[index](picture, level / LARGEST, -1.0 if side < 0.5 else 1.0)
    return np.asarray(picture)


def erase(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Returns uint8 [height, width, 3] pixels, a quarter of the time with a rectangle of noise in them; a new array then.

    Its area is a uniform share of the picture's and the logarithm of its ratio uniform; one that is not smaller than the picture is drawn
    again, ten times at most (timm's `RandomErasing`). The module's docstring says which noise.
    """
    height, width = image.shape[:2]
    coin, top_share, left_share = draw.random(3).tolist()
    tries = draw.random((TRIES, 2)).tolist()
    if coin >= ERASE_PROBABILITY:
        return image
    for area_share, ratio_share in tries:
        area = _between(ERASED_AREA, area_share) * height * width
        ratio = _between_logs(ERASED_RATIO, ratio_share)
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if high < height and wide < width:
            top, left = _place(top_share, height - high), _place(left_share, width - wide)
            result = image.copy()
            noise = draw.standard_normal((high, wide, 3), np.float32)
            levels = 255 * (np.array(IMAGENET_MEAN, np.float32) + np.array(IMAGENET_DEVIATION, np.float32) * noise)
            result[top : top + high, left : left + wide] = levels.round().clip(0, 255)
            return result
    return image


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share


def _between_logs(bounds: tuple[float, float], share: float) -> float:
    return math.exp(_between((math.log(bounds[0]), math.log(bounds[1])), share))


def _place(share: float, last: int) -> int:
    """A uniform whole number from 0 to `last`; share: from 0, below 1."""
    return int(share * (last + 1))


# ------------------------------------------------------------------------------------------------- operations: (picture, level, sign)
# `level` is the magnitude over 10, from 0 to 1; `sign` is -1 or 1, half of the time each. Pillow computes them, as in timm. Those named
# "increasing" there (inc1) change a picture the more, the higher the level.

Operation = Callable[[Image.Image, float, float], Image.Image]


def _enhanced(kind: Callable[[Image.Image], Any]) -> Operation:
    """Saturation, contrast, brightness or sharpness times 1 - 0.9 level or 1 + 0.9 level."""
    return lambda picture, level, sign: kind(picture).enhance(max(0.1, 1.0 + sign * 0.9 * level))


def _posterize(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Keeps the 4 - int(4 level) highest bits of each level; none at all, a black picture, at the highest."""
    return ImageOps.posterize(picture, 4 - int(4 * level))


def _solarize(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Inverts the levels from 256 - int(256 level) on."""
    return ImageOps.solarize(picture, 256 - min(256, int(256 * level)))


def _solarize_add(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Adds int(110 level) to the levels below 128, cut at 255."""
    add = min(128, int(110 * level))
    return picture.point([min(255, value + add) if value < 128 else value for value in range(256)] * 3)


def _rotate(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Turns by 30 level degrees."""
    return picture.rotate(sign * 30.0 * level, resample=Image.Resampling.BICUBIC, fillcolor=FILL)


def _moved(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Operation:
    """An affine map, whose matrix takes places of the result to places of the picture."""
    return lambda picture, level, sign: picture.transform(
        picture.size, Image.Transform.AFFINE, matrix(picture, sign * level), resample=Image.Resampling.BICUBIC, fillcolor=FILL
    )


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda picture, level, sign: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, level, sign: ImageOps.equalize(picture),
    "Invert": lambda picture, level, sign: ImageOps.invert(picture),
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhanced(ImageEnhance.Color),
    "ContrastIncreasing": _enhanced(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhanced(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhanced(ImageEnhance.Sharpness),
    "ShearX": _moved(lambda picture, amount: (1.0, 0.3 * amount, 0.0, 0.0, 1.0, 0.0)),
    "ShearY": _moved(lambda picture, amount: (1.0, 0.0, 0.0, 0.3 * amount, 1.0, 0.0)),
    "TranslateXRel": _moved(lambda picture, amount: (1.0, 0.0, 0.45 * amount * picture.width, 0.0, 1.0, 0.0)),
    "TranslateYRel": _moved(lambda picture, amount: (1.0, 0.0, 0.0, 0.0, 1.0, 0.45 * amount * picture.height)),
}
_OPERATIONS = tuple(OPERATIONS.values())
