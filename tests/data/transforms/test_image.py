"""Decoding of every kind of file, and picture transforms whose boxes move with the pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ofa_jax.data.records import Box
from ofa_jax.data.transforms import image as image_module
from ofa_jax.data.transforms.image import decode_image, resize_image, resize_scales, transform


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int, height: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns * 255 // width, rows * 255 // height, (rows + columns) % 256], axis=-1).astype(np.uint8)


PIXELS = gradient(40, 24)
RGB = Image.fromarray(PIXELS)


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encode(RGB, "PNG"), 0),
        (encode(RGB, "BMP"), 0),
        (encode(RGB, "WEBP", lossless=True), 0),
        (encode(RGB, "JPEG", quality=95, subsampling=0), 12),
        (encode(RGB, "JPEG", quality=95, progressive=True), 40),
        (encode(RGB.convert("CMYK"), "JPEG", quality=95), 30),
    ],
)
def test_colour_files_decode_to_their_pixels(data: bytes, tolerance: int):
    decoded = decode_image(data)
    assert decoded.shape == (24, 40, 3) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - PIXELS).max() <= tolerance


def test_grey_files_decode_to_three_equal_channels():
    grey = PIXELS[..., 0]
    for data in (encode(Image.fromarray(grey), "PNG"), encode(Image.fromarray(grey), "JPEG", quality=100)):
        decoded = decode_image(data)
        assert np.abs(decoded.astype(int) - grey[..., None]).max() <= 2


def test_sixteen_bit_grey_is_scaled_not_clipped():
    deep = PIXELS[..., 0].astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(deep), "PNG"))[..., 0], PIXELS[..., 0])


def test_transparency_lies_over_white():
    rgba = np.dstack([PIXELS, np.full((24, 40), 255, np.uint8)])
    rgba[:, :20, 3] = 0
    rgba[:, 20:30, 3] = 128
    decoded = decode_image(encode(Image.fromarray(rgba), "PNG"))
    assert (decoded[:, :20] == 255).all()
    np.testing.assert_array_equal(decoded[:, 30:], PIXELS[:, 30:])
    assert np.abs(decoded[:, 20:30].astype(float) - (PIXELS[:, 20:30] * (128 / 255) + 255 * (127 / 255))).max() <= 1


@pytest.mark.filterwarnings("error")
def test_palettes_with_and_without_transparency():
    palette = RGB.quantize(16)
    np.testing.assert_array_equal(decode_image(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(decode_image(encode(palette, "GIF")), np.asarray(palette.convert("RGB")))
    transparent = decode_image(encode(palette, "PNG", transparency=bytes([0] * 16)))
    assert (transparent == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_file_is_a_content_error(kind: str, share: float):
    data = encode(RGB.resize((200, 100)), kind)
    with pytest.raises(ValueError, match="found .* do(es)? not decode .*, expected a whole"):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"<html>not here</html>", b"\x00" * 100, encode(RGB, "TIFF")])
def test_other_bytes_are_a_content_error(data: bytes):
    with pytest.raises(ValueError, match="expected a whole"):
        decode_image(data)


def test_a_damaged_checksum_is_a_content_error():
    data = bytearray(encode(RGB, "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ValueError, match="do not decode"):
        decode_image(bytes(data))


def test_pictures_of_too_many_pixels_are_not_decoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_module, "MAX_PIXELS", 900)
    for kind in ("PNG", "JPEG"):
        with pytest.raises(ValueError, match="40 x 24 pixels are more than 900"):
            decode_image(encode(RGB, kind))


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_resize_squashes_with_pillows_bicubic_and_keeps_the_right_size():
    picture = transform("resize", PIXELS, [Box(10, 6, 20, 12)], 16, draw())
    np.testing.assert_array_equal(picture.image, np.asarray(RGB.resize((16, 16), Image.Resampling.BICUBIC)))
    assert picture.boxes == (Box(4, 4, 8, 8),) and picture.kept == (0,)
    square = PIXELS[:16, :16].copy()
    assert transform("resize", square, [], 16, draw()).image is square


def test_scales_are_those_of_the_official_code():
    assert resize_scales(384) == (range(384, 481), 672)
    assert resize_scales(480) == (range(480, 481), 672)
    assert resize_scales(64) == (range(64, 81), 112)
    assert resize_scales(512) == (range(512, 513), 716)


def test_random_resize_draws_every_scale_and_then_takes_the_centre():
    picture = gradient(48, 32)
    seen = set()
    for seed in range(200):
        scale = int(draw(seed).integers(16, 21))
        seen.add(scale)
        width = min(int(scale * 48 / 32), 28)
        whole = np.asarray(Image.fromarray(picture).resize((width, scale), Image.Resampling.BICUBIC))
        left, top = round((width - 16) / 2), round((scale - 16) / 2)
        result = transform("random_resize_crop", picture, [], 16, draw(seed))
        np.testing.assert_array_equal(result.image, whole[top : top + 16, left : left + 16])
    assert seen == set(range(16, 21))


def test_the_clamp_distorts_a_long_side():
    """A picture of 1 : 10 is 112 pixels long at most for a network input of 64 (672 at 384), so a 64 px crop shows over half of it."""
    long = np.zeros((40, 400, 3), np.uint8)
    long[:, 100:300] = 255
    assert (transform("random_resize_crop", long, [], 64, draw()).image[:, 8:-8] > 200).mean() > 0.95


@pytest.mark.parametrize("kind", ["resize", "random_resize_crop", "scale_jitter"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (7, 300), (64, 64), (3, 100_000), (300, 200)])
def test_every_size_becomes_the_network_input(kind: str, size: tuple[int, int]):
    width, height = size
    for seed in range(5):
        picture = transform(kind, gradient(width, height), [Box(0, 0, width, height)], 64, draw(seed))
        assert picture.image.shape == (64, 64, 3) and picture.image.dtype == np.uint8 and picture.kept == (0,)
        assert picture.image.flags.c_contiguous


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(["resize", "random_resize_crop", "scale_jitter"]),
    size=st.tuples(st.integers(40, 160), st.integers(40, 160)),
    corner=st.tuples(st.floats(0, 0.8), st.floats(0, 0.8)),
    share=st.tuples(st.floats(0.15, 1), st.floats(0.15, 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_painted_rectangle_stays_inside_its_box(kind, size, corner, share, seed):
    """Paints the box white on black, transforms, and finds the white pixels where the moved box says."""
    width, height = size
    x0, y0 = int(corner[0] * width), int(corner[1] * height)
    x1, y1 = min(width, x0 + max(6, int(share[0] * width))), min(height, y0 + max(6, int(share[1] * height)))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    picture = transform(kind, pixels, [Box(x0, y0, x1, y1)], 64, draw(seed))
    white = picture.image[..., 0] > 127
    if not picture.boxes:
        assert kind == "scale_jitter" and not white.any()
        return
    [box] = picture.boxes
    assert 0 <= box.x0 < box.x1 <= 64 and 0 <= box.y0 < box.y1 <= 64
    expected = np.zeros((64, 64), bool)
    expected[round(box.y0) : round(box.y1), round(box.x0) : round(box.x1)] = True
    # The edge of a resized rectangle lies within a pixel of the box's: only there may the two differ.
    rows, columns = np.nonzero(white != expected)
    far_x = np.minimum(np.abs(columns + 0.5 - box.x0), np.abs(columns + 0.5 - box.x1)) > 1.5
    far_y = np.minimum(np.abs(rows + 0.5 - box.y0), np.abs(rows + 0.5 - box.y1)) > 1.5
    assert not (far_x & far_y).any()


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.9), st.floats(0, 0.9))
def test_the_box_of_a_region_is_never_cropped_away(seed: int, x: float, y: float):
    """OFA's ObjectCenterCrop: the window is centred on the box and clamped inside the picture."""
    box = Box(x * 200, y * 120, x * 200 + 10, y * 120 + 10)
    picture = transform("random_resize_crop", gradient(200, 120), [box], 32, draw(seed))
    assert picture.kept == (0,)
    [moved] = picture.boxes
    assert moved.x1 - moved.x0 > 1 and moved.y1 - moved.y0 > 1


def test_several_regions_are_kept_together_where_they_fit():
    boxes = [Box(60, 10, 70, 20), Box(75, 12, 80, 30)]
    picture = transform("random_resize_crop", gradient(200, 40), boxes, 32, draw())
    assert picture.kept == (0, 1)


def test_jitter_drops_boxes_outside_and_tells_which_are_left():
    boxes = [Box(0, 0, 5, 5), Box(0, 0, 100, 100), Box(95, 95, 100, 100)]
    kept = {transform("scale_jitter", gradient(100, 100), boxes, 32, draw(seed)).kept for seed in range(60)}
    assert all(1 in indices for indices in kept) and {(1,), (0, 1), (1, 2)} <= kept


def test_jitter_mirrors_half_of_the_time_and_scales_by_1_to_1_5():
    mirrored, widths = 0, []
    for seed in range(400):
        picture = transform("scale_jitter", gradient(64, 64), [Box(24, 0, 40, 64)], 64, draw(seed))
        mirrored += int(picture.image[0, 0, 0]) > int(picture.image[0, -1, 0])
        [box] = picture.boxes
        widths.append((box.x1 - box.x0) / 16)
    assert 160 < mirrored < 240
    assert min(widths) >= 1 - 1e-9 and max(widths) < 1.51 and 1.2 < np.mean(widths) < 1.3


def test_an_unknown_transform_is_refused():
    with pytest.raises(ValueError, match="found 'rotate', expected resize"):
        transform("rotate", PIXELS, [], 16, draw())


def test_resize_takes_views():
    mirrored = PIXELS[:, ::-1]
    np.testing.assert_array_equal(resize_image(mirrored, width=16, height=16), resize_image(mirrored.copy(), width=16, height=16))
