"""Encoded bytes -> RGB pixels -> the square network input, together with the boxes of the picture.

Pictures stay uint8 on the host; they are normalised on the device. Resizing is Pillow's bicubic filter, which OFA's own transforms
use. Every random choice comes from the generator that the caller passes, in the order stated at each function.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from ofa_jax.data.records import Box
from ofa_jax.data.transforms.boxes import clip_box, crop_box, flip_box, has_area, scale_box
from ofa_jax.data.transforms.imagenet import imagenet_augment
from ofa_jax.data.transforms.resample import resize_window

MAX_PIXELS = 100_000_000  # a picture above this is refused before it is decoded, unless the caller allows less
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_OFA_MAX_SCALE = 480  # upper end of OFA's RandomResize scales, whatever the input size
_MAX_JITTER = 1.5  # upper end of LargeScaleJitter
_MAX_JITTER_SIDES = 32  # longer side over the network input at most, so that a picture of 1 x 100,000 pixels cannot fill the memory
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)


class Picture(NamedTuple):
    """A transformed picture and its boxes."""

    image: np.ndarray  # uint8 [px, px, 3], RGB
    boxes: tuple[Box, ...]  # pixels of `image`, clipped to it; only boxes that still have an area
    kept: tuple[int, ...]  # for each box its index among the boxes that came in


def decode_image(data: bytes, *, max_pixels: int | None = None, at_least: int = 0) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, GIF or BMP file into RGB pixels, uint8 [height, width, 3].

    Transparency is laid over white, 16-bit grey is scaled down, CMYK and palettes are converted. The EXIF orientation is not
    applied, because boxes are pixels of the stored picture. Raises ValueError with the reason for bytes that are no whole picture and,
    before it is decoded, for one of more than `max_pixels` (None: `MAX_PIXELS`).

    With `at_least`, a JPEG whose shorter side is longer may come smaller, by the scaled inverse DCT in eighths of its size, as long as
    its shorter side keeps that many pixels (`enough_for`); any other file comes whole. `stored_size` still tells its size.
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    return _decode_jpeg(data, limit, at_least) if _is_jpeg(data) else _decode_with_pillow(data, limit)


def stored_size(data: bytes, decoded: np.ndarray) -> tuple[int, int]:
    """Returns (width, height) of a file that `decode_image` has read as `decoded`, however small."""
    if _is_jpeg(data):
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return width, height
    return decoded.shape[1], decoded.shape[0]


def enough_for(kind: str, px: int) -> int:
    """Returns `at_least` of `decode_image` for transform `kind` to `px`: twice the longest side that it gives a picture's shorter side.

    Pillow's bicubic filter antialiases from there, and 640 x 480 is never reduced at 384 px.
    `launch/bench.py data --sizes` measures at 384 px, on synthetic photographs against whole decoding: 2048 x 1536 at 5/8 1.35 times the
    images/s and a PSNR of 53 dB, 4000 x 3000 at 3/8 2.75 times and 55 dB, 2047 x 1365 at 6/8 1.09 times and 44 dB. Sides are rounded up,
    so that a picture whose sides are no multiples of 8 is stretched by less than a decoded pixel, 1/960 of the shorter side here.
    """
    if kind in ("random_crop", "imagenet"):  # cut pixels as they are stored
        return 0
    longest = {"random_resize_crop": resize_scales(px)[0][-1], "scale_jitter": round(px * _MAX_JITTER)}.get(kind, px)
    return 2 * longest


def _is_jpeg(data: bytes) -> bool:
    return data[:2] == b"\xff\xd8"


def _decode_jpeg(data: bytes, max_pixels: int, at_least: int) -> np.ndarray:
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        if colour_space in ("CMYK", "YCCK"):
            return _decode_with_pillow(data, max_pixels)
        if not 0 < at_least < min(height, width):
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        return simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=at_least, min_width=at_least)
    except ValueError as error:
        raise ValueError(f"found a JPEG file of {len(data)} bytes that does not decode ({error}), expected a whole picture") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} pixels are more than {max_pixels}")


def _decode_with_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_size(picture.width, picture.height, max_pixels)
            picture.load()
            return np.asarray(_to_rgb(picture))
    except DECODE_ERRORS as error:
        # Pillow's message for unknown bytes prints the address of the buffer: say what the bytes begin with instead.
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        start = data[:8].hex(" ")
        raise ValueError(
            f"found {len(data)} bytes starting with {start} that do not decode ({reason}), expected a whole {' or '.join(FORMATS)} file"
        ) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip to white
        grey = np.asarray(picture).astype(np.uint32)
        return Image.fromarray((grey // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        opaque = picture.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    return picture.convert("RGB")


def transform(
    kind: Literal["resize", "random_resize_crop", "scale_jitter", "random_crop", "imagenet"],
    image: np.ndarray,
    boxes: Sequence[Box],
    px: int,
    draw: np.random.Generator,
) -> Picture:
    """Makes the `px` x `px` network input of a picture, uint8 [height, width, 3], and moves its boxes with the pixels.

    - `resize`: both sides become `px`, whatever the aspect ratio; no random choice.
    - `random_resize_crop`: OFA's RandomResize, then a centre crop, or a crop around the boxes where there are any.
    - `scale_jitter`: OFA's detection transform: a mirrored picture half of the time, LargeScaleJitter 1.0 to 1.5, random crop.
    - `random_crop`: any square of the picture as it is, mirrored half of the time; one with a side below `px` is enlarged to `px` first.
    - `imagenet`: all that OFA's ImageNet recipe does, both its rounds of RandAugment and random erasing too (`transforms.imagenet`); for
      pictures without boxes.

    Boxes are clipped to the result; `Picture.kept` tells which of them still have an area.
    """
    if kind == "resize":
        result, moved = _resize(image, boxes, width=px, height=px)
        moved = [clip_box(box, width=px, height=px) for box in moved]
    elif kind == "random_resize_crop":
        result, moved = _random_resize_crop(image, boxes, px=px, draw=draw)
    elif kind == "scale_jitter":
        result, moved = _scale_jitter(image, boxes, px=px, draw=draw)
    elif kind == "random_crop":
        result, moved = _random_crop(image, boxes, px=px, draw=draw)
    elif kind == "imagenet" and not boxes:
        result, moved = imagenet_augment(image, px, draw), []
    elif kind == "imagenet":
        raise ValueError(f"picture transform imagenet: found {len(boxes)} boxes, expected none, as it does not move them")
    else:
        kinds = "resize, random_resize_crop, scale_jitter, random_crop or imagenet"
        raise ValueError(f"picture transform: found {kind!r}, expected {kinds}")
    kept = tuple(index for index, box in enumerate(moved) if has_area(box))
    return Picture(result, tuple(moved[index] for index in kept), kept)


def resize_image(image: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Resizes uint8 [h, w, 3] pixels with Pillow's bicubic filter; the same array where the size is right already."""
    if image.shape[:2] == (height, width):
        return image
    return resize_window(image, width=width, height=height, left=0, top=0, columns=width, rows=height)


def _resize(image: np.ndarray, boxes: Sequence[Box], *, width: int, height: int) -> tuple[np.ndarray, list[Box]]:
    old_height, old_width = image.shape[:2]
    scaled = [scale_box(box, x=width / old_width, y=height / old_height) for box in boxes]
    return resize_image(image, width=width, height=height), scaled


def _resize_crop(
    image: np.ndarray, boxes: Sequence[Box], *, width: int, height: int, left: int, top: int, px: int
) -> tuple[np.ndarray, list[Box]]:
    """The window at (`left`, `top`) of the picture resized to `width` x `height`; `boxes` are in pixels of the resized picture."""
    if image.shape[:2] == (height, width):
        return _crop(image, boxes, left=left, top=top, px=px)
    window = resize_window(image, width=width, height=height, left=left, top=top, columns=px, rows=px)
    return window, _cropped(boxes, left=left, top=top, px=px)


def _crop(image: np.ndarray, boxes: Sequence[Box], *, left: int, top: int, px: int) -> tuple[np.ndarray, list[Box]]:
    return np.ascontiguousarray(image[top : top + px, left : left + px]), _cropped(boxes, left=left, top=top, px=px)


def _cropped(boxes: Sequence[Box], *, left: int, top: int, px: int) -> list[Box]:
    return [crop_box(box, left=left, top=top, width=px, height=px) for box in boxes]


def resize_scales(px: int) -> tuple[range, int]:
    """The shorter sides that RandomResize draws from, and the clamp of both sides, for a network input of `px`.

    OFA draws from 384..480 with a clamp of 672 at 384 px, and always 480 with the same clamp at 480 px. Between and below, the same
    proportions: from `px` to 1.25 `px`, but not past 480 unless `px` itself is larger; the clamp is 1.4 times the upper end.
    """
    largest = max(px, min(px * 5 // 4, _OFA_MAX_SCALE))
    return range(px, largest + 1), largest * 7 // 5


def _random_resize_crop(image: np.ndarray, boxes: Sequence[Box], *, px: int, draw: np.random.Generator) -> tuple[np.ndarray, list[Box]]:
    """One draw: the scale. The clamp of a long side distorts the picture, as in the official code."""
    height, width = image.shape[:2]
    scales, clamp = resize_scales(px)
    scale = int(draw.integers(scales.start, scales.stop))
    longer = int(scale * max(width, height) / min(width, height))
    new_width, new_height = (scale, longer) if width <= height else (longer, scale)
    new_width, new_height = min(new_width, clamp), min(new_height, clamp)
    size = {"width": new_width, "height": new_height}
    boxes = [scale_box(box, x=new_width / width, y=new_height / height) for box in boxes]
    if not boxes:
        return _resize_crop(image, boxes, **size, left=round((new_width - px) / 2), top=round((new_height - px) / 2), px=px)
    # One box: OFA's ObjectCenterCrop. Several: around the box that encloses them all. The window lies on whole pixels, so that
    # box and pixels move together (the official code moves the box by the unrounded offset).
    centre_x = (min(box.x0 for box in boxes) + max(box.x1 for box in boxes)) / 2
    centre_y = (min(box.y0 for box in boxes) + max(box.y1 for box in boxes)) / 2
    left = round(min(max(centre_x - px / 2, 0), new_width - px))
    top = round(min(max(centre_y - px / 2, 0), new_height - px))
    return _resize_crop(image, boxes, **size, left=left, top=top, px=px)


def _scale_jitter(image: np.ndarray, boxes: Sequence[Box], *, px: int, draw: np.random.Generator) -> tuple[np.ndarray, list[Box]]:
    """Four draws: mirror, scale, top and left of the crop. The shorter side becomes round(px * r), r uniform in [1, 1.5)."""
    height, width = image.shape[:2]
    flip, ratio, top_share, left_share = draw.random(4)
    boxes = list(boxes)
    if flip < 0.5:
        image = image[:, ::-1]
        boxes = [flip_box(box, width=width) for box in boxes]
    shorter = round(px * (1.0 + (_MAX_JITTER - 1.0) * ratio))
    scale = max(shorter / height, shorter / width)
    new_width, new_height = (min(round(side * scale), _MAX_JITTER_SIDES * px) for side in (width, height))
    boxes = [scale_box(box, x=new_width / width, y=new_height / height) for box in boxes]
    top, left = int((new_height - px) * top_share), int((new_width - px) * left_share)
    return _resize_crop(image, boxes, width=new_width, height=new_height, left=left, top=top, px=px)


def _random_crop(image: np.ndarray, boxes: Sequence[Box], *, px: int, draw: np.random.Generator) -> tuple[np.ndarray, list[Box]]:
    """Three draws: mirror, top and left of the crop."""
    flip, top_share, left_share = draw.random(3)
    boxes = list(boxes)
    height, width = image.shape[:2]
    if min(height, width) < px:
        scale = px / min(height, width)
        width, height = (max(px, min(round(side * scale), _MAX_JITTER_SIDES * px)) for side in (width, height))
        image, boxes = _resize(image, boxes, width=width, height=height)
    if flip < 0.5:
        image = image[:, ::-1]
        boxes = [flip_box(box, width=width) for box in boxes]
    return _crop(image, boxes, left=int((width - px + 1) * left_share), top=int((height - px + 1) * top_share), px=px)
