"""Boxes in pixels <-> location bins.

A coordinate p of the network input becomes bin round(p / canvas * (bins - 1)), rounded half to even in float32 as the official code
does with its canvas of 512 px and 1000 bins; the divisor is the canvas, whatever the picture's size. Order: x0 y0 x1 y1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def box_to_bins(box: Sequence[float], *, canvas_px: int, num_bins: int) -> tuple[int, int, int, int]:
    """Four bins (each 0 to num_bins-1) of `box`, four pixel coordinates. Coordinates outside 0 to canvas_px are clipped to it.

    Raises ValueError for a box that is not four finite numbers.
    """
    pixels = np.asarray(box, np.float32)
    if pixels.shape != (4,) or not np.isfinite(pixels).all():
        raise ValueError(f"box: found {tuple(box)}, expected four finite numbers")
    bins = np.rint(pixels / np.float32(canvas_px) * np.float32(num_bins - 1))
    x0, y0, x1, y1 = np.clip(bins, 0, num_bins - 1).astype(int).tolist()
    return x0, y0, x1, y1


def bins_to_box(bins: Sequence[int], *, canvas_px: int, num_bins: int) -> tuple[float, float, float, float]:
    """Four pixel coordinates of the network input; off by at most half a bin, canvas_px / (num_bins - 1) / 2, after `box_to_bins`.

    Raises ValueError unless there are four bins, each 0 to num_bins-1.
    """
    if len(bins) != 4 or any(not 0 <= b < num_bins for b in bins):
        raise ValueError(f"bins: found {tuple(bins)}, expected four numbers from 0 to {num_bins - 1}")
    x0, y0, x1, y1 = (int(b) / (num_bins - 1) * canvas_px for b in bins)
    return x0, y0, x1, y1
