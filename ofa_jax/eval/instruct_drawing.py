"""One picture of a prediction: what was shown, boxes or filled-in codes on it, the instruction and the answer below."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from ofa_jax.config.errors import DataError
from ofa_jax.data.transforms.image import decode_image, resize_image
from ofa_jax.eval.codec import PictureCodec, load_codec, picture_of
from ofa_jax.eval.drawing import PREDICTION_COLOUR, contact_sheet, draw_boxes, enlarge, fill_square
from ofa_jax.eval.instruct import Prediction, Request

_LONGEST_PX = 1024  # of the drawing: lines and letters have a size of their own
_ASKED_COLOUR = "#5d6d7e"
_SHOWN_ANSWERS = 5


def draw_prediction(request: Request, prediction: Prediction, *, codec: PictureCodec | None) -> Image.Image:
    """The drawing. `codec` (`codec.load_codec`) is used for codes only.

    Raises DataError for codes without a codec, or with one that has fewer codes.
    """
    panel = draw_panel(request, prediction, codec=codec)
    if prediction.answers:
        said = [f"{math.exp(log_prob):.3f} {label}" for label, log_prob in prediction.answers[:_SHOWN_ANSWERS]]
    else:
        said = [] if prediction.output == "codes" else str(prediction).splitlines()
    lines = [(request.text.strip(), _ASKED_COLOUR), *((line, PREDICTION_COLOUR) for line in said)]
    return contact_sheet([([] if panel is None else [("", panel)], lines)])


def draw_panel(request: Request, prediction: Prediction, *, codec: PictureCodec | None) -> np.ndarray | None:
    """Only the picture, uint8 [h, w, 3] of about 256 to 1024 px, with boxes or filled-in codes on it; None where there is nothing to see.

    `codec` and what is raised are as in `draw_prediction`.
    """
    given = None if request.picture is None else decode_image(request.picture)
    pixels = None if given is None else _small(given)
    if prediction.output == "codes":
        pixels = _fill(pixels, prediction.codes, codec)
    if pixels is not None and given is not None and prediction.output in ("box", "objects"):
        found = list(prediction.objects) if prediction.box is None else [("", prediction.box)]
        return draw_boxes(pixels, truth=[], predicted=found, width=given.shape[1], height=given.shape[0])
    return None if pixels is None else enlarge(pixels)


def save_prediction(path: Path, request: Request, prediction: Prediction, *, data_dir: str | Path) -> str:
    """Writes the drawing as a PNG, codes with the codec of `data_dir`. Returns "", or why nothing was written: there is none.

    Raises DataError where the file cannot be written, and as `draw_prediction`.
    """
    codec = load_codec(data_dir) if prediction.output == "codes" else None
    if prediction.output == "codes" and codec is None:
        return f"{path}: not drawn, because {data_dir} has neither vqgan.npz nor codebook.npz; the codes are written only"
    try:
        draw_prediction(request, prediction, codec=codec).save(path, "PNG")
    except OSError as error:
        raise DataError(f"{path}: found no file that can be written ({error.strerror}), expected one") from error
    return ""


def _small(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = min(1.0, _LONGEST_PX / max(height, width))
    return resize_image(pixels, width=max(1, round(width * scale)), height=max(1, round(height * scale)))


def _fill(pixels: np.ndarray | None, codes: tuple[int, ...], codec: PictureCodec | None) -> np.ndarray:
    """The picture with its middle half-side part, which the model did not see, replaced by the codes; without one, the codes' own."""
    if codec is None:
        raise DataError("image codes: found neither vqgan.npz nor codebook.npz in data.dir, expected one to draw codes with")
    square = picture_of(np.array(codes), codec)
    if pixels is None:
        return square
    height, width = pixels.shape[:2]
    # The network saw the picture squashed to a square: there the codes stand for the middle, and are stretched with it.
    whole = max(2 * square.shape[0], height, width)
    whole += -whole % 4
    part = resize_image(square, width=whole // 2, height=whole // 2)
    return resize_image(fill_square(resize_image(pixels, width=whole, height=whole), part), width=width, height=height)
