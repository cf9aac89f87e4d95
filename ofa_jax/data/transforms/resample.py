"""A window of a resized picture, level for level what Pillow's bicubic filter gives, at a sixth of its time.

Pillow resizes the whole picture; most of RandomResize's work is then cut off by the crop, and its loops take one channel at a time. Here
only the window's rows and columns are computed, and the inner loops run over neighbouring bytes, so that the compiler (numba, whose
machine code is cached on the disk) makes vector instructions of them. `launch/bench.py data` times both.

The arithmetic is that of Pillow's `Resample.c` (12.3): Keys' cubic with a = -0.5, as wide as an output pixel where the picture shrinks;
weights in double precision, divided by their sum and rounded to 22 fractional bits; first along the rows, then along the columns, each
pass summed in 32-bit integers from one half and cut to 0 .. 255. Equal weights and integer sums leave no room for a difference.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_BITS = 22  # fractional bits of a weight: 8 bits of a level and 2 for overshoot are left of 32
_TALL = 100  # times its width that a picture must be high for Pillow's `Image.resize` to turn the two passes round
_ROWS = 16  # rows that the first pass takes at a time: 48 bytes side by side for one column


def resize_window(image: np.ndarray, *, width: int, height: int, left: int, top: int, columns: int, rows: int) -> np.ndarray:
    """Returns uint8 [rows, columns, 3], a new array: the window at (`left`, `top`) of `image` resized to `width` x `height`.

    image: uint8 [h, w, 3] with h, w >= 1. Raises ValueError for a window that is not inside of the resized picture.
    """
    if not (0 <= left < left + columns <= width and 0 <= top < top + rows <= height):
        raise ValueError(f"window: found {columns} x {rows} at ({left}, {top}), expected it inside of {width} x {height}")
    across = _weights(image.shape[1], width, left, columns)
    down = _weights(image.shape[0], height, top, rows)
    if image.shape[0] > _TALL * image.shape[1] and height < image.shape[0]:  # Pillow takes the columns first
        turned = _resample(np.ascontiguousarray(image.transpose(1, 0, 2)), *down, *across)
        return np.ascontiguousarray(turned.transpose(1, 0, 2))
    return np.asarray(_resample(np.ascontiguousarray(image), *across, *down))  # a mirrored view has steps of its own


@njit(cache=True, nogil=True)
def _weights(old, new, first, count):  # type: ignore[no-untyped-def]
    """The weights of outputs first .. first + count - 1 of `new` over `old` inputs: int32 [count, taps], and for each output the first
    input and the number of inputs that it has."""
    scale = old / new
    wider = max(scale, 1.0)
    narrower = 1.0 / wider
    support = 2.0 * wider
    taps = int(np.ceil(support)) * 2 + 1
    weights = np.zeros((count, taps), np.int32)
    begin = np.empty(count, np.int32)
    length = np.empty(count, np.int32)
    exact = np.empty(taps)
    for i in range(count):
        centre = (first + i + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), old)
        total = 0.0
        for t in range(high - low):
            x = abs((t + low - centre + 0.5) * narrower)
            if x < 1.0:
                exact[t] = (1.5 * x - 2.5) * x * x + 1.0
            elif x < 2.0:
                exact[t] = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
            else:
                exact[t] = 0.0
            total += exact[t]
        for t in range(high - low):
            value = (exact[t] / total if total != 0.0 else exact[t]) * (1 << _BITS)
            weights[i, t] = int(value - 0.5) if value < 0.0 else int(value + 0.5)
        begin[i] = low
        length[i] = high - low
    return weights, begin, length


@njit(cache=True, nogil=True)
def _resample(pixels, across, x_begin, x_length, down, y_begin, y_length):  # type: ignore[no-untyped-def]
    """The two passes, uint8 [h, w, 3] -> [rows, columns, 3], with the weights of both."""
    columns, rows = len(x_begin), len(y_begin)
    first_x, first_y = x_begin[0], y_begin[0]
    num_x = x_begin[-1] + x_length[-1] - first_x
    num_y = y_begin[-1] + y_length[-1] - first_y
    half = np.int32(1 << (_BITS - 1))
    between = np.empty((num_y, columns * 3), np.uint8)
    turned = np.empty((num_x, _ROWS * 3), np.uint8)  # columns of some rows, so that neighbours in memory share their weights
    sums = np.empty(_ROWS * 3, np.int32)
    for y in range(0, num_y, _ROWS):
        some = min(_ROWS, num_y - y)
        for r in range(some):
            for x in range(num_x):
                turned[x, 3 * r] = pixels[first_y + y + r, first_x + x, 0]
                turned[x, 3 * r + 1] = pixels[first_y + y + r, first_x + x, 1]
                turned[x, 3 * r + 2] = pixels[first_y + y + r, first_x + x, 2]
        for x in range(columns):
            for j in range(_ROWS * 3):
                sums[j] = half
            for t in range(x_length[x]):
                weight, levels = across[x, t], turned[x_begin[x] - first_x + t]
                for j in range(_ROWS * 3):
                    sums[j] += weight * np.int32(levels[j])
            for j in range(_ROWS * 3):
                sums[j] = min(max(sums[j] >> _BITS, 0), 255)
            for r in range(some):
                to = between[y + r]
                to[3 * x] = sums[3 * r]
                to[3 * x + 1] = sums[3 * r + 1]
                to[3 * x + 2] = sums[3 * r + 2]
    result = np.empty((rows, columns * 3), np.uint8)
    row = np.empty(columns * 3, np.int32)
    for y in range(rows):
        for j in range(columns * 3):
            row[j] = half
        for t in range(y_length[y]):
            weight, levels = down[y, t], between[y_begin[y] - first_y + t]
            for j in range(columns * 3):
                row[j] += weight * np.int32(levels[j])
        to = result[y]
        for j in range(columns * 3):
            to[j] = min(max(row[j] >> _BITS, 0), 255)
    return result.reshape(rows, columns, 3)
