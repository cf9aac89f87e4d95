"""Tar files as img2dataset writes them, with pictures that are made up from (tar, sample)."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

WORDS = ("a", "red", "dog", "and", "the", "old", "cat", "near", "wooden", "house", "with", "two", "large", "birds", "under", "grey", "sky")
Change = Callable[[int, int, dict[str, bytes]], dict[str, bytes]]  # (tar, sample, members) -> members


def picture(tar: int, sample: int, *, width: int = 160, height: int = 120) -> np.ndarray:
    """Returns uint8 [height, width, 3] of smooth colours and finer grain."""
    draw = np.random.default_rng((tar, sample))
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 6):
        coarse = draw.normal(size=(2**octave + 1, 2**octave + 1, 3)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / 1.7**octave
    low, high = total.min(), total.max()
    return ((total - low) * (255 / (high - low))).astype(np.uint8)


def caption(tar: int, sample: int) -> str:
    draw = np.random.default_rng((7, tar, sample))
    return " ".join(draw.choice(WORDS, int(draw.integers(3, 40)))) + f" {tar} {sample}"


def members(tar: int, sample: int) -> dict[str, bytes]:
    """Returns the members of one sample by their endings."""
    meta = {"key": f"{tar:05d}{sample:04d}", "status": "success", "url": f"http://pictures.example/{tar}/{sample}"}
    image = simplejpeg.encode_jpeg(picture(tar, sample), 90)
    return {"jpg": image, "json": json.dumps(meta).encode(), "txt": caption(tar, sample).encode()}


def write_tars(folder: Path, *, tars: int, samples: int, change: Change = lambda tar, sample, found: found) -> Path:
    """Writes `folder/00000.tar`, ... with `samples` each; `change` may spoil the members of a sample. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(tars):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for sample in range(samples):
                for ending, data in change(number, sample, members(number, sample)).items():
                    info = tarfile.TarInfo(f"{number:05d}{sample:04d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        (folder / f"{number:05d}_stats.json").write_text("{}")
    return folder
