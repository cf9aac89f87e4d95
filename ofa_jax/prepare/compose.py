"""Pictures of the scenes: a background, one to four drawings on it, and the exact boxes of what stays visible."""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from ofa_jax.data.records import Box

VISIBLE = 0.25  # alpha from which a pixel counts as the object's
MIN_VISIBLE_FRACTION = 0.8  # of an object's own pixels that others may not hide


def _palette() -> np.ndarray:
    """Returns float32 [24, 2, 3]: 16 pastel and 8 dark colours, each with a shade of itself that patterns combine it with."""
    pairs = []
    for hue in range(16):
        pairs.append([colorsys.hsv_to_rgb(hue / 16, 0.16, 0.99), colorsys.hsv_to_rgb(hue / 16, 0.36, 0.86)])
    for hue in range(8):
        pairs.append([colorsys.hsv_to_rgb(hue / 8, 0.45, 0.28), colorsys.hsv_to_rgb(hue / 8, 0.5, 0.46)])
    return np.array(pairs, np.float32)


PALETTE = _palette()
STYLES = ("flat", "stripes", "checks", "halves", "gradient", "blobs", "grain")
_STYLE_CHANCES = (0.1, 0.33, 0.27, 0.06, 0.1, 0.09, 0.05)


def background(draw: np.random.Generator, *, image_px: int) -> np.ndarray:
    """Returns a float32 [image_px, image_px, 3] background, values 0 to 1, in one of `STYLES`.

    Stripes, checks and halves lie on a grid of 1/16 of the side. What such a pattern looks like where it is hidden follows from where it
    is seen but is not what its nearest seen spot shows, so that image infilling can be learnt and is not solved by copying.
    """
    style = STYLES[int(draw.choice(len(STYLES), p=_STYLE_CHANCES))]
    first, second = PALETTE[draw.integers(len(PALETTE))][:: 1 if draw.random() < 0.5 else -1]
    if style == "flat":
        return np.broadcast_to(first, (image_px, image_px, 3)).astype(np.float32)
    if style == "grain":
        grain = draw.normal(0, 0.03, (image_px // 2, image_px // 2)).astype(np.float32)
        return np.clip(first + cv2.resize(grain, (image_px, image_px), interpolation=cv2.INTER_LINEAR)[..., None], 0, 1).astype(np.float32)
    rows, columns = np.mgrid[0:image_px, 0:image_px].astype(np.float32) / image_px
    row_cells, column_cells = np.floor(rows * 16).astype(int), np.floor(columns * 16).astype(int)
    width = 1 if draw.random() < 0.4 else 2  # of a stripe or check, in cells
    phase = int(draw.integers(0, 2 * width))
    if style == "stripes":
        across = (row_cells + column_cells, row_cells - column_cells, row_cells, column_cells)[draw.choice(4, p=(0.35, 0.35, 0.15, 0.15))]
        mix = (across + phase) // width % 2
    elif style == "checks":
        mix = ((row_cells + phase) // width + (column_cells + int(draw.integers(0, 2 * width))) // width) % 2
    elif style == "halves":
        mix = (row_cells if draw.random() < 0.7 else column_cells) >= draw.integers(4, 13)
    elif style == "gradient":
        angle = draw.uniform(0, 2 * np.pi)
        along = columns * np.cos(angle) + rows * np.sin(angle)
        mix = (along - along.min()) / (along.max() - along.min())
    else:
        mix = cv2.resize(draw.random((5, 5)).astype(np.float32), (image_px, image_px), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    return (first + (second - first) * np.asarray(mix, np.float32)[..., None]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where patches lie: top-left corners in pixels and the boxes of what stays visible, in paint order."""

    corners: tuple[tuple[int, int], ...]  # x, y
    boxes: tuple[Box, ...]


def lay_out(patches: Sequence[np.ndarray], draw: np.random.Generator, *, image_px: int, max_iou: float, spread: float) -> Layout | None:
    """Returns a random layout of patches (float32 [h, w, 4]) wholly inside the picture, or None when this draw does not fit.

    Middles are drawn uniformly within the central `spread` of the room there is. Boxes overlap by at most `max_iou`, and of every object at
    least `MIN_VISIBLE_FRACTION` of its pixels stays visible.
    """
    corners: list[tuple[int, int]] = []
    for patch in patches:
        height, width = patch.shape[:2]
        for _ in range(12):
            x, y = (int((image_px - side) * (0.5 + spread * (draw.random() - 0.5)) + 0.5) for side in (width, height))
            box = (x, y, x + width, y + height)
            if all(_iou(box, (cx, cy, cx + p.shape[1], cy + p.shape[0])) <= max_iou for (cx, cy), p in zip(corners, patches, strict=False)):
                corners.append((x, y))
                break
        else:
            return None
    boxes = visible_boxes(patches, corners, image_px=image_px)
    return None if boxes is None else Layout(tuple(corners), boxes)


def _iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Returns intersection over union of two pixel boxes."""
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap) if overlap else 0.0


def visible_boxes(patches: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], *, image_px: int) -> tuple[Box, ...] | None:
    """Returns each object's box around its pixels that no later object covers, or None when one is hidden too much."""
    covered = np.zeros((image_px, image_px), bool)
    boxes: list[Box] = []
    for patch, (x, y) in zip(reversed(patches), reversed(corners), strict=True):
        shape = patch[..., 3] > VISIBLE
        window = covered[y : y + shape.shape[0], x : x + shape.shape[1]]
        seen = shape & ~window
        if seen.sum() < MIN_VISIBLE_FRACTION * shape.sum():
            return None
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        boxes.append(Box(float(x + columns[0]), float(y + rows[0]), float(x + columns[-1] + 1), float(y + rows[-1] + 1)))
        window |= shape
    return tuple(reversed(boxes))


def paint(canvas: np.ndarray, patches: Sequence[np.ndarray], corners: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns `canvas` (float32, 0 to 1) with the patches painted over it in order, as uint8 RGB [h, w, 3]."""
    canvas = canvas.copy()
    for patch, (x, y) in zip(patches, corners, strict=True):
        window = canvas[y : y + patch.shape[0], x : x + patch.shape[1]]
        window *= 1 - patch[..., 3:]
        window += patch[..., :3]
    return (canvas * 255 + 0.5).clip(0, 255).astype(np.uint8)


def encode_png(image: np.ndarray) -> bytes:
    """Returns uint8 RGB [h, w, 3] as PNG bytes."""
    return cv2.imencode(".png", image[..., ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 3))[1].tobytes()
