"""Geometry of boxes under the picture transforms. Boxes are pixels x0 y0 x1 y1, x1 and y1 exclusive; all functions are pure."""

from __future__ import annotations

from ofa_jax.data.records import Box


def scale_box(box: Box, *, x: float, y: float) -> Box:
    """The box after the picture's width was multiplied by `x` and its height by `y`."""
    return Box(box.x0 * x, box.y0 * y, box.x1 * x, box.y1 * y)


def flip_box(box: Box, *, width: float) -> Box:
    """The box after a picture of `width` pixels was mirrored left to right."""
    return Box(width - box.x1, box.y0, width - box.x0, box.y1)


def clip_box(box: Box, *, width: float, height: float) -> Box:
    """The part of the box inside a picture of `width` x `height` pixels; outside of it a box of no area on the border."""
    return Box(min(max(box.x0, 0), width), min(max(box.y0, 0), height), min(max(box.x1, 0), width), min(max(box.y1, 0), height))


def crop_box(box: Box, *, left: float, top: float, width: float, height: float) -> Box:
    """The box in the coordinates of the crop window at (`left`, `top`), clipped to the window."""
    moved = Box(box.x0 - left, box.y0 - top, box.x1 - left, box.y1 - top)
    return clip_box(moved, width=width, height=height)


def has_area(box: Box) -> bool:
    """True where both sides are longer than zero."""
    return box.x1 > box.x0 and box.y1 > box.y0
