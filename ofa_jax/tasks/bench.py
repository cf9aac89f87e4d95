"""Rates of making rows of the pairs stream on one core; `launch/bench.py data` prints them.

The floor is what a loader of these pictures does at least: decoding and one bicubic resize to the same sizes, by the usual libraries and
by what the pipeline itself uses.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from array_record.python import array_record_module
from PIL import Image

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import BlockConfig, DataConfig, SourceConfig, VocabConfig
from ofa_jax.data.examples import serialize
from ofa_jax.data.pipeline import Pipeline
from ofa_jax.data.records import SCHEMA_VERSION, Caption, ImageRecord, open_records
from ofa_jax.data.transforms.image import decode_image, enough_for, resize_image, resize_scales, transform
from ofa_jax.tasks.base import Negatives
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.vocab.tokenizer import load_tokenizer

_WORDS = ("a", "the", "two", "red", "small", "dog", "cat", "woman", "street", "table", "on", "under", "near", "holding", "house", "boat")
_REPEATS = 32


@dataclasses.dataclass(frozen=True)
class RowRates:
    """Pictures a second of process time, medians over repeats, and the medians of the repeats' ratios to the floors."""

    floor: float  # decode + resize alone, by simplejpeg and Pillow
    own_floor: float  # decode + resize of the whole picture alone, by the functions that the pipeline uses
    window_floor: float  # the same, where of the resized picture the crop's window alone is computed
    rows: float
    augmented: float  # rows with RandAugment
    rows_ratio: tuple[float, ...]  # to the three floors, in their order
    augmented_ratio: tuple[float, ...]


def photograph(width: int, height: int, seed: int) -> np.ndarray:
    """Returns uint8 [height, width, 3] that compresses like a photograph: noise in all octaves, and discs with sharp edges."""
    draw = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    cells, strength = 2, 1.0
    while cells <= max(width, height):
        shape = (max(2, cells * height // max(width, height)), max(2, cells * width // max(width, height)), 3)
        octave = draw.standard_normal(shape, np.float32)
        octave = 1.2 * octave.mean(-1, keepdims=True) + 0.4 * octave  # channels of photographs go together
        pixels += strength * cv2.resize(octave, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, strength = cells * 2, strength * 0.75
    for _ in range(25):
        disc = np.zeros((height, width), np.float32)
        cv2.circle(disc, (int(draw.integers(width)), int(draw.integers(height))), int(draw.integers(4, max(5, height // 4))), 1.0, -1)
        pixels += disc[..., None] * draw.uniform(-0.7, 0.7, 3).astype(np.float32)
    return (128 + (pixels - pixels.mean()) * (52 / pixels.std())).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray) -> bytes:
    """Returns a JPEG file of quality 90 with halved colour, as cameras and the web write them."""
    return bytes(simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB", colorsubsampling="420"))


def row_rates(files: list[bytes], *, px: int, repeats: int) -> RowRates:
    """Times the floors and whole batches of caption rows, from shards on the disk to stacked arrays, with and without RandAugment, in turn
    within every repeat."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    times: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        _write_records(Path(folder), files)
        plain, augmented = (_pipeline(Path(folder), len(files), px, rand_augment=augment) for augment in (False, True))
        try:
            for repeat in range(repeats + 1):  # the first warms up
                took = []
                for measured in (decode_and_resize, decode_and_resize_compiled, decode_and_cut, plain, augmented):
                    start = time.process_time()
                    if isinstance(measured, Pipeline):
                        measured.batch(repeat)
                    else:
                        for i, file in enumerate(files):
                            measured(file, px, np.random.default_rng([repeat, i]))
                    took.append(time.process_time() - start)
                times.append(took)
        finally:
            cv2.setNumThreads(threads)
    floor, compiled, window, rows, augmented_rows = (len(files) / statistics.median(column) for column in zip(*times[1:], strict=True))
    rows_ratios, augmented_ratios = (
        tuple(statistics.median(took[alone] / took[column] for took in times[1:]) for alone in range(3)) for column in (3, 4)
    )
    return RowRates(floor, compiled, window, rows, augmented_rows, rows_ratios, augmented_ratios)


def _write_records(folder: Path, files: list[bytes]) -> None:
    """Writes a prepared data set "made" of captioned pictures: one shard and what readers ask of a manifest.

    Every file comes `_REPEATS` times: Grain's shuffle walks long cycles where records are few, 0.4 ms a draw for 64 of them.
    """
    shard = folder / "made" / "made-train.array_record-00000-of-00001"
    shard.parent.mkdir()
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    for i, file in enumerate(files * _REPEATS):
        height, width = simplejpeg.decode_jpeg_header(file)[:2]
        captions = (Caption(_caption(np.random.default_rng([2, i]))),)
        writer.write(serialize(ImageRecord(f"made/{i}", "made", file, width, height, captions=captions)))
    writer.close()
    number = len(files) * _REPEATS
    table = {"records": number, "shards": [{"file": shard.name, "records": number, "bytes": shard.stat().st_size}]}
    manifest = {"schema_version": SCHEMA_VERSION, "record": "image", "row": "caption", "splits": {"train": table}}
    (shard.parent / "manifest.json").write_text(json.dumps(manifest))


def _pipeline(folder: Path, rows: int, px: int, *, rand_augment: bool) -> Pipeline:
    """The pipeline of one block of the pairs stream, `rows` pictures a batch."""
    vocab = VocabConfig()
    negatives = Negatives(captions=tuple(_caption(np.random.default_rng([1, i])) for i in range(100)))
    build = RowBuilder(vocab, load_tokenizer(vocab), {"made": negatives}, transform)
    source = SourceConfig("made", "caption")
    block = BlockConfig("pairs", "pairs", rows, 24, 32, (source,), image_px=px, augment="random_resize_crop", rand_augment=rand_augment)
    return Pipeline(DataConfig(str(folder), (block,)), 0, build, lambda line: open_records(folder, line.dataset, line.split))


def decode_and_resize(data: bytes, px: int, draw: np.random.Generator) -> np.ndarray:
    """The floor: a whole JPEG by simplejpeg and Pillow's bicubic to a size of RandomResize, drawn as a caption row draws it."""
    pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    return np.asarray(Image.fromarray(pixels).resize(_drawn_size(pixels, px, draw), Image.Resampling.BICUBIC))


def decode_and_resize_compiled(data: bytes, px: int, draw: np.random.Generator) -> np.ndarray:
    """The floor by what the pipeline itself uses: the same whole picture, by its decoder and its compiled bicubic filter."""
    pixels = decode_image(data)
    width, height = _drawn_size(pixels, px, draw)
    return resize_image(pixels, width=width, height=height)


def _drawn_size(pixels: np.ndarray, px: int, draw: np.random.Generator) -> tuple[int, int]:
    """Width and height that RandomResize draws."""
    height, width = pixels.shape[:2]
    scales, clamp = resize_scales(px)
    scale = int(draw.integers(scales.start, scales.stop)) / min(height, width)
    return min(int(width * scale), clamp), min(int(height * scale), clamp)


def decode_and_cut(data: bytes, px: int, draw: np.random.Generator) -> np.ndarray:
    """The floor of what is done here: of the resized picture the crop's window alone."""
    return transform("random_resize_crop", decode_image(data), [], px, draw).image


def _caption(draw: np.random.Generator) -> str:
    return " ".join(_WORDS[i] for i in draw.integers(len(_WORDS), size=11))


def smaller_decoding(width: int, height: int, *, px: int, repeats: int, seeds: int = 3) -> str:
    """Returns a line: `width` x `height` pixels to a `px` network input, decoded whole and at a smaller size; rates, gain and PSNR."""
    at_least = enough_for("random_resize_crop", px)
    times: dict[int, list[float]] = {0: [], at_least: []}
    psnr = []
    for seed in range(seeds):
        data = encode(photograph(width, height, seed))
        found = {}
        for repeat in range(repeats):
            for side, took in times.items():
                start = time.process_time()
                found[side] = transform(
                    "random_resize_crop", decode_image(data, at_least=side), [], px, np.random.default_rng(repeat)
                ).image
                took.append(time.process_time() - start)
        error = np.square(found[0].astype(np.float64) - found[at_least]).mean()
        psnr.append(10 * np.log10(255.0**2 / error) if error else np.inf)
    whole, small = (1 / statistics.median(took) for took in times.values())
    return f"{width} x {height}: whole {whole:.1f}, smaller {small:.1f} images/s, gain {small / whole:.2f}, PSNR {min(psnr):.1f} dB or more"


def report(flags: argparse.Namespace) -> str:
    """Returns the lines of `launch/bench.py data`. Raises UserError when `flags.peer`, the Python of an environment with torch, fails."""
    count, px, repeats = flags.images, flags.image_px, flags.repeats
    files = [encode(photograph(640, 480, seed)) for seed in range(count)]
    kilobytes = sum(map(len, files)) / count / 1000
    lines = [f"data: {count} JPEG files of 640 x 480, quality 90, {kilobytes:.0f} kB on average, to {px} px; images/s on one core"]
    found = row_rates(files, px=px, repeats=repeats)
    lines += [
        f"decode + resize alone     {found.floor:7.1f}",
        f"the same, compiled        {found.own_floor:7.1f}",
        f"the crop's window alone   {found.window_floor:7.1f}",
        f"caption rows              {found.rows:7.1f}   {_of_floors(found.rows_ratio)}",
        f"caption rows, RandAugment {found.augmented:7.1f}   {_of_floors(found.augmented_ratio)}",
    ]
    if flags.peer:
        rates = peer_rates(flags.peer, files, px=px, repeats=repeats)
        lines.append(f"peer, pictures            {rates['plain']:7.1f}   ofa_jax {found.rows / rates['plain']:.2f} times that")
        lines.append(f"peer, RandAugment         {rates['augmented']:7.1f}   ofa_jax {found.augmented / rates['augmented']:.2f} times that")
    if flags.sizes:
        for width, height in ((640, 480), (1024, 768), (2048, 1536), (2047, 1365), (4000, 3000)):
            lines.append(smaller_decoding(width, height, px=px, repeats=repeats))
    return "\n".join(lines)


def _of_floors(ratios: tuple[float, ...]) -> str:
    return f"{ratios[0]:.2f} of decode + resize, {ratios[1]:.2f} of compiled, {ratios[2]:.2f} of the window"


def peer_rates(python: str, files: list[bytes], *, px: int, repeats: int) -> dict[str, Any]:
    """Returns what `tests/parity/torch_rows.py` says about `files`, run by `python`: images/s, `plain` and `augmented`."""
    script = Path(__file__).resolve().parents[2] / "tests" / "parity" / "torch_rows.py"
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(files):
            (Path(folder) / f"{i:05d}.jpg").write_bytes(file)
        try:
            done = subprocess.run([python, str(script), folder, str(px), str(repeats)], capture_output=True, text=True)
        except OSError as error:
            raise UserError(f"--peer: found {python}, which does not start ({error}), expected a Python with torch") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise UserError(f"--peer: {python} ended with {done.returncode}: {last}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
