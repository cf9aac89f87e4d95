"""OFA's RandAugment: a few photographic and geometric operations on the network input of captions and questions.

Ten operations and one fixed strength, as OFA's pretraining uses them (N = 2 draws, M = 7 of 10). Tone operations agree with Pillow's
ImageOps and ImageEnhance; Sharpness but for the border, which stays as it is. Geometric operations sample linearly and fill with grey.
Nothing is mirrored, because captions mention left and right.

Two accidents of the official code are not repeated: AutoContrast there negates the darkest level as an unsigned byte, which whites out a
picture without black, and Sharpness lets levels above 255 start again at 0. All its pictures of an epoch also share their draws.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

NUM_OPS = 2  # N, drawn with replacement
PROBABILITY = 0.5  # that a drawn operation is applied
# What M = 7 of 10 means for each operation.
ENHANCE = 1.36  # 0.7 x 1.8 + 0.1
SHEAR = 0.21  # 0.7 x 0.3: pixels sideways for a pixel down
TRANSLATE_PX = 7  # 0.7 x 10
ROTATE_DEGREES = 21.0  # 0.7 x 30
FILL = (128, 128, 128)

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH


def rand_augment(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Returns `image`, uint8 [height, width, 3] RGB, after two operations of `OPERATIONS`, each applied half of the time.

    The input is not changed, and is what comes back when nothing is applied. Always the same number of draws: the two operations, then
    for each whether it is applied and its sign, so that what is drawn next does not hang on what was applied.
    """
    chosen = draw.integers(len(_OPERATIONS), size=NUM_OPS).tolist()
    for index, (coin, side) in zip(chosen, draw.random((NUM_OPS, 2)).tolist(), strict=True):
        if coin < PROBABILITY:
            image = _OPERATIONS[index](image, -1.0 if side < 0.5 else 1.0)
    return image


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel so that its darkest level becomes 0 and its brightest 255; a channel of one level stays as it is."""

    def table(histogram: np.ndarray) -> np.ndarray | None:
        levels = np.flatnonzero(histogram)
        low, high = int(levels[0]), int(levels[-1])
        if high <= low:
            return None
        scale = 255.0 / (high - low)
        return (np.arange(256) * scale - low * scale).clip(0, 255).astype(np.uint8)

    return _by_channel(image, table)


def equalize(image: np.ndarray) -> np.ndarray:
    """Spreads the levels of each channel so that they are about equally frequent, by Pillow's rule (not OpenCV's equalizeHist)."""

    def table(histogram: np.ndarray) -> np.ndarray | None:
        step = int(histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
        if step == 0:
            return None
        below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
        return ((below + step // 2) // step).clip(0, 255).astype(np.uint8)

    return _by_channel(image, table)


def _by_channel(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray | None]) -> np.ndarray:
    same = np.arange(256, dtype=np.uint8)
    tables = []
    for channel in range(3):
        histogram = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        found = table(histogram)
        tables.append(same if found is None else found)
    return np.asarray(cv2.LUT(image, np.stack(tables, axis=-1)[None]))


def brightness(image: np.ndarray, factor: float = ENHANCE) -> np.ndarray:
    """Multiplies every level by `factor`, cut off at 255 and rounded down."""
    return np.asarray(cv2.LUT(image, (np.arange(256, dtype=np.float32) * np.float32(factor)).clip(0, 255).astype(np.uint8)))


def sharpness(image: np.ndarray, factor: float = ENHANCE) -> np.ndarray:
    """Moves every pixel away from a 3 x 3 smoothing of the picture (towards it for a `factor` below 1); the outermost pixels stay."""
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return image
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    # addWeighted rounds to the nearest level, Pillow and OFA round down. Values are multiples of 0.04: 0.49 less makes the two one.
    result = np.asarray(cv2.addWeighted(image, factor, smooth, 1.0 - factor, -0.49))
    result[[0, -1]] = image[[0, -1]]
    result[:, [0, -1]] = image[:, [0, -1]]
    return result


def shear_x(image: np.ndarray, amount: float) -> np.ndarray:
    """Moves every row right by `amount` times its number, counted from the top."""
    return _warp(image, [[1, amount, 0], [0, 1, 0]])


def shear_y(image: np.ndarray, amount: float) -> np.ndarray:
    """Moves every column down by `amount` times its number, counted from the left."""
    return _warp(image, [[1, 0, 0], [amount, 1, 0]])


def translate_x(image: np.ndarray, px: int) -> np.ndarray:
    """Moves the picture left by `px` whole pixels, right where negative."""
    result = np.full_like(image, FILL[0])  # a copy of rows takes a fiftieth of the time of an affine warp
    if px >= 0:
        result[:, : max(image.shape[1] - px, 0)] = image[:, px:]
    else:
        result[:, -px:] = image[:, :px]
    return result


def translate_y(image: np.ndarray, px: int) -> np.ndarray:
    """Moves the picture up by `px` whole pixels, down where negative."""
    result = np.full_like(image, FILL[0])
    if px >= 0:
        result[: max(image.shape[0] - px, 0)] = image[px:]
    else:
        result[-px:] = image[:px]
    return result


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turns the picture counter-clockwise about the point (width / 2, height / 2), in coordinates of pixel centres, as OFA does."""
    height, width = image.shape[:2]
    return _warp(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0))


def _warp(image: np.ndarray, matrix: list[list[float]] | np.ndarray) -> np.ndarray:
    """`matrix` takes places of `image` to places of the result."""
    height, width = image.shape[:2]
    forward = np.asarray(matrix, np.float64)
    return np.asarray(
        cv2.warpAffine(image, forward, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=FILL)
    )


OPERATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {  # (image, sign) -> image
    "Identity": lambda image, sign: image,
    "AutoContrast": lambda image, sign: autocontrast(image),
    "Equalize": lambda image, sign: equalize(image),
    "Brightness": lambda image, sign: brightness(image),
    "Sharpness": lambda image, sign: sharpness(image),
    "ShearX": lambda image, sign: shear_x(image, sign * SHEAR),
    "ShearY": lambda image, sign: shear_y(image, sign * SHEAR),
    "TranslateX": lambda image, sign: translate_x(image, round(sign * TRANSLATE_PX)),
    "TranslateY": lambda image, sign: translate_y(image, round(sign * TRANSLATE_PX)),
    "Rotate": lambda image, sign: rotate(image, sign * ROTATE_DEGREES),
}
_OPERATIONS = tuple(OPERATIONS.values())
