"""How well a VQGAN gives back pictures that it was not trained on: PSNR, codes used, and a sheet of originals beside reconstructions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import VQGANRunConfig
from ofa_jax.data.pictures import decode_picture
from ofa_jax.data.records import ImageRecord, open_records
from ofa_jax.data.transforms.image import transform
from ofa_jax.eval.drawing import enlarge
from ofa_jax.metrics.psnr import psnr
from ofa_jax.models.vqgan_codec import Codec
from ofa_jax.parallel import hosts

FOLDER = "reconstructions"


def held_out_pictures(config: VQGANRunConfig) -> np.ndarray:
    """Returns uint8 [n, image_px, image_px, 3]: pictures of `config.eval`, spread over its split, resized.

    Raises DataError without such records or for records of text, and RecordError for one that cannot be used.
    """
    plan = config.eval
    source = open_records(config.data.dir, plan.dataset, plan.split)
    places = np.unique(np.linspace(0, len(source) - 1, min(plan.limit, len(source))).round().astype(int)).tolist()
    pictures, draw = [], np.random.default_rng(0)
    for record in source.read(places):
        if not isinstance(record, ImageRecord):
            raise DataError(f"eval.dataset: found text records in {plan.dataset}, expected image records")
        pictures.append(transform("resize", decode_picture(record), [], plan.image_px, draw).image)
    return np.stack(pictures)


def reconstruct(codec: Codec, pictures: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Returns (numbers by name, reconstructions uint8 like `pictures`).

    psnr: mean dB of the pictures. codes_used: share of the codebook that any cell took. perplexity: e^entropy of the codes' frequencies.
    """
    codes = codec.encode(pictures)
    made = codec.decode(codes)
    counts = np.bincount(codes.ravel(), minlength=codec.config.num_codes)
    share = counts[counts > 0] / counts.sum()
    numbers = {
        "psnr": float(psnr(made, pictures).mean()),
        "codes_used": float((counts > 0).mean()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
    }
    return numbers, made


def sheet(pictures: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Returns one picture, uint8: originals in the upper row, their reconstructions below."""
    rows = [np.concatenate([enlarge(picture) for picture in row], axis=1) for row in (pictures, made)]
    return np.concatenate(rows)


def in_loop(config: VQGANRunConfig, workdir: Path) -> Callable[[Any], dict[str, float]]:
    """Returns a function from a train state to `eval/psnr/<dataset>/<split>` and so on, which also writes `reconstructions/step_<n>.png`
    and `reconstructions/numbers.json`, of the newest state, below `workdir`. It takes the average of the weights where
    the state keeps one. All processes must call it."""
    pictures = held_out_pictures(config)
    plan, name = config.eval, f"{config.eval.dataset}/{config.eval.split}"
    kept: list[Codec] = []  # compiled at the first call

    def measure(state: Any) -> dict[str, float]:
        params = (state.params if state.ema is None else state.ema)["vqgan"]
        whole = multihost_utils.process_allgather(params, tiled=True) if hosts.count() > 1 else jax.device_get(params)
        if not kept:
            kept.append(Codec(config.model, whole, rows=plan.batch_rows, precision=config.precision))
        codec = kept[0].with_params(whole)
        numbers, made = reconstruct(codec, pictures)
        if hosts.is_first():
            folder = workdir / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            step = int(state.step)
            chosen = np.linspace(0, len(pictures) - 1, min(plan.drawn, len(pictures))).round().astype(int)
            if len(chosen):
                Image.fromarray(sheet(pictures[chosen], made[chosen])).save(folder / f"step_{step:06d}.png")
            partial = folder / "numbers.json.partial"
            partial.write_text(json.dumps({"step": step, "set": name, "pictures": len(pictures), **numbers}, indent=1) + "\n")
            os.replace(partial, folder / "numbers.json")
        return {f"eval/{metric}/{name}": value for metric, value in numbers.items()}

    return measure
