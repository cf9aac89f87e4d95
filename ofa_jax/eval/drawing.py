"""Draws pictures for the report: boxes of truth and prediction, infilled squares, contact sheets and loss curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window system is needed

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ofa_jax.config.errors import DataError
from ofa_jax.eval.codec import PictureCodec, picture_of

TRUTH_COLOUR, PREDICTION_COLOUR = "#00796b", "#d84315"
_SHOWN_PX = 256  # side to which small pictures are enlarged
_GREY = 128  # what the hidden square looks like after normalisation


def enlarge(pixels: np.ndarray) -> np.ndarray:
    """A small picture enlarged by a whole factor to about 256 px, nearest neighbour (64 px: times 4); uint8 [h, w, 3]."""
    factor = max(1, _SHOWN_PX // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def draw_boxes(
    pixels: np.ndarray,
    *,
    truth: Sequence[tuple[str, Sequence[float]]],
    predicted: Sequence[tuple[str, Sequence[float]]],
    width: float,
    height: float,
) -> np.ndarray:
    """The enlarged picture, uint8, with labelled boxes: truth in teal with the label above, prediction in orange below.

    Boxes are pixels of the stored picture of `width` x `height`. A box may be turned inside out or lie outside: it is drawn as far as
    it can be.
    """
    shown = Image.fromarray(enlarge(pixels))
    pen = ImageDraw.Draw(shown)
    font = ImageFont.load_default(size=max(11, shown.width // 22))
    for objects, colour, above, thick in ((truth, TRUTH_COLOUR, True, 3), (predicted, PREDICTION_COLOUR, False, 2)):
        for label, box in objects:
            x0, x1 = sorted((box[0] * shown.width / width, box[2] * shown.width / width))
            y0, y1 = sorted((box[1] * shown.height / height, box[3] * shown.height / height))
            pen.rectangle((x0, y0, x1, y1), outline=colour, width=thick)
            if label:
                left, top, right, bottom = font.getbbox(label)
                tall, wide = bottom - top + 4, right - left + 6
                x = min(max(0, x0), shown.width - wide)
                y = max(0, y0 - tall) if above else min(shown.height - tall, y1)
                pen.rectangle((x, y, x + wide, y + tall), fill=colour)
                pen.text((x + 3 - left, y + 2 - top), label, fill="white", font=font)
    return np.asarray(shown)


def fill_square(pixels: np.ndarray, square: np.ndarray) -> np.ndarray:
    """A copy of the picture with `square`, uint8 [s, s, 3], in its centre."""
    out = pixels.copy()
    top, left = (pixels.shape[0] - square.shape[0]) // 2, (pixels.shape[1] - square.shape[1]) // 2
    out[top : top + square.shape[0], left : left + square.shape[1]] = square
    return out


def hide_square(pixels: np.ndarray) -> np.ndarray:
    """A copy of the picture, uint8 [side, side, 3], as the model sees it in image infilling: its central half-side square is hidden."""
    half = pixels.shape[0] // 2
    return fill_square(pixels, np.full((half, half, 3), _GREY, np.uint8))


def infilling_panels(pixels: np.ndarray, line: dict[str, Any], codec: PictureCodec | None) -> list[tuple[str, np.ndarray]]:
    """(caption, enlarged picture) of an infilling example: what the model sees, its fill, what the true codes keep, the truth.

    Fill and best possible need the codec and are left out without it. A code of -1 (the model said no code) stays grey.
    """
    panels = [("input", hide_square(pixels))]
    if codec is not None:
        for caption, codes in (("generated", line["generated"]), ("true codes", line["reference"])):
            panels.append((caption, fill_square(pixels, picture_of(codes, codec))))
    panels.append(("original", pixels))
    return [(caption, enlarge(panel)) for caption, panel in panels]


def example_panels(line: dict[str, Any], pixels: np.ndarray | None, codec: PictureCodec | None) -> list[tuple[str, np.ndarray]]:
    """(caption, picture) of one line of predictions.jsonl; nothing for a text, and none without a codec for a picture that is painted."""
    if line["task"] == "image_generation" and codec is not None:
        return [
            (caption, enlarge(picture_of(line[key], codec))) for caption, key in (("generated", "generated"), ("true codes", "reference"))
        ]
    if pixels is None:
        return []
    size = {"width": line["width"], "height": line["height"]}
    if line["task"] == "image_infilling":
        return infilling_panels(pixels, line, codec)
    if line["task"] == "grounding":
        found = [("", line["prediction"])] if line["prediction"] else []
        return [("", draw_boxes(pixels, truth=[("", line["reference"])], predicted=found, **size))]
    if line["task"] == "detection":
        truth, found = ([(o["label"], o["box"]) for o in line[key]] for key in ("reference", "prediction"))
        return [("", draw_boxes(pixels, truth=truth, predicted=found, **size))]
    return [("", enlarge(pixels))]


def contact_sheet(items: Sequence[tuple[list[tuple[str, np.ndarray]], list[tuple[str, str]]]], *, columns: int = 4) -> Image.Image:
    """One picture of many examples, each its panels in a row with lines of (text, colour) below. Needs at least one example."""
    font = ImageFont.load_default(size=13)
    cells = []
    for panels, lines in items:
        if len(panels) > 1:
            lines = [(" | ".join(caption for caption, _ in panels), "#5d6d7e"), *lines]
            panels = [(caption, panel[::2, ::2]) for caption, panel in panels]  # as many beside each other, half as large
        width = max(260, sum(p.shape[1] + 4 for _, p in panels))
        height = max((p.shape[0] for _, p in panels), default=0)
        texts = [(part, colour) for text, colour in lines for part in _wrap(text, font, width)]
        cell = Image.new("RGB", (width, height + 6 + 17 * len(texts)), "white")
        x = 0
        for _, panel in panels:
            cell.paste(Image.fromarray(panel), (x, 0))
            x += panel.shape[1] + 4
        pen = ImageDraw.Draw(cell)
        for k, (text, colour) in enumerate(texts):
            pen.text((0, height + 4 + 17 * k), text, fill=colour, font=font)
        cells.append(cell)
    columns = min(columns, len(cells), max(1, 1200 // max(c.width for c in cells)))
    wide, tall = max(c.width for c in cells) + 12, max(c.height for c in cells) + 12
    sheet = Image.new("RGB", (wide * columns + 12, tall * -(-len(cells) // columns) + 12), "white")
    for k, cell in enumerate(cells):
        sheet.paste(cell, (12 + wide * (k % columns), 12 + tall * (k // columns)))
    return sheet


def _wrap(text: str, font: Any, width: int) -> list[str]:
    lines, current = [], ""
    for word in text.split():
        tried = f"{current} {word}".strip()
        if current and font.getlength(tried) > width:
            lines.append(current)
            tried = word
        current = tried
    return [*lines, current][:8]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, one object each; a last line that was cut off is left out. Raises DataError for any other bad line."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number}: found no JSON object ({error}), expected one a line") from error
    return found


def draw_loss_curves(metrics: Sequence[dict[str, Any]], path: str | Path) -> bool:
    """Writes a PNG of the loss per token by task over steps, one small panel a task; False where nothing was logged yet."""
    names = sorted({key for line in metrics for key in line if key.startswith("loss/nll/")})
    if any("loss/total" in line for line in metrics):
        names = ["loss/total", *names]
    if not names:
        return False
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.3 * rows), layout="constrained")
    for k, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, k + 1)
        points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
        steps, values = np.array(points, np.float64).T if points else (np.zeros(0), np.zeros(0))
        few = len(values) < 10  # too few to smooth: every one is marked, or a single one would be invisible
        axes.plot(steps, values, color="#0d47a1" if few else "#b0bec5", linewidth=0.8, marker="o" if few else None, markersize=3)
        if not few:
            width = max(3, len(values) // 20)
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(steps[width - 1 :], smooth, color="#0d47a1", linewidth=1.5)
        axes.set_title(name.removeprefix("loss/nll/").replace("loss/total", "total loss").replace("_", " "), fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if k // columns == rows - 1:
            axes.set_xlabel("step", fontsize=9)
        if k % columns == 0:
            axes.set_ylabel("loss (nats per token)", fontsize=9)
    figure.savefig(path, dpi=110)
    return True
