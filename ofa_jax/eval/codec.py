"""What turns a run's image codes into pictures and pictures into codes: the VQGAN or the patch codebook in its data folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import as_path, exists, local_copy
from ofa_jax.metrics.baselines import decode_codes, encode_patches
from ofa_jax.models.vqgan_codec import CODEC_FILE, Codec, load_codec_file

PATCHES_FILE = "codebook.npz"
_GREY = 128  # where there is no code


class PictureCodec(Protocol):
    """Both ways on batches of pictures."""

    @property
    def num_codes(self) -> int: ...

    @property
    def stride(self) -> int:
        """Pixels a code covers in each direction."""

    @property
    def description(self) -> str:
        """What it is, as part of a sentence."""

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, h, w, 3] with sides that are multiples of the stride -> int [n, h / stride, w / stride]."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int [n, h, w] -> uint8 [n, h * stride, w * stride, 3]."""


class PatchCodec:
    """Every patch is the nearest of a list of patches: what stands in for a VQGAN where none was trained."""

    def __init__(self, centers: np.ndarray):
        """centers: uint8 [num_codes, stride, stride, 3]."""
        self._centers = centers
        self.num_codes, self.stride = centers.shape[:2]
        patches = f"{self.num_codes:,} patches of {self.stride} x {self.stride} px"
        self.description = f"no VQGAN but a codebook of {patches}, fitted when the data was prepared"

    def encode(self, images: np.ndarray) -> np.ndarray:
        return np.stack([encode_patches(image, self._centers) for image in images])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return np.stack([decode_codes(grid, self._centers) for grid in codes])


class VqganCodec:
    """The VQGAN of a file, one picture at a time, as pages and sheets draw them: a larger batch would be filled up with nothing."""

    def __init__(self, path: Path, *, rows: int = 1):
        config, params, self.digest = load_codec_file(path)
        self._codec = Codec(config, params, rows=rows)
        self.num_codes, self.stride = config.num_codes, config.stride
        self.description = f"a VQGAN of {self.num_codes:,} codes, each for {self.stride} x {self.stride} px"

    def encode(self, images: np.ndarray) -> np.ndarray:
        return self._codec.encode(images)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self._codec.decode(codes)


def load_codec(data_dir: str | os.PathLike[str], *, rows: int = 1) -> PictureCodec | None:
    """Returns what `data_dir`, a local folder or an address, holds: the VQGAN that its codes are of (vqgan.npz), else a patch codebook
    (codebook.npz), else None. rows: pictures that a VQGAN makes at once.

    Raises DataError where a file is not of its form.
    """
    if exists(vqgan := as_path(data_dir) / CODEC_FILE):
        return VqganCodec(local_copy(vqgan), rows=rows)
    path = as_path(data_dir) / PATCHES_FILE
    if not exists(path):
        return None
    with np.load(local_copy(path)) as stored:
        if "centers" not in stored:
            raise DataError(f"{path}: found arrays {', '.join(stored.files)}, expected centers")
        centers = stored["centers"]
    if centers.dtype != np.uint8 or centers.ndim != 4 or centers.shape[1] != centers.shape[2] or centers.shape[3] != 3:
        raise DataError(f"{path}: found centers {centers.dtype} {centers.shape}, expected uint8 [num_codes, side, side, 3]")
    return PatchCodec(centers)


def picture_of(codes: np.ndarray, codec: PictureCodec) -> np.ndarray:
    """Returns the picture, uint8, of a square grid of codes int [grid * grid]; a code of -1 (the model said no code) is grey.

    Raises DataError for a code that the codec does not have.
    """
    return pictures_of(np.asarray(codes)[None], codec)[0]


def pictures_of(codes: np.ndarray, codec: PictureCodec) -> np.ndarray:
    """Returns the pictures, uint8 [n, px, px, 3], of as many square grids of codes int [n, grid * grid]; otherwise as `picture_of`."""
    side = round(codes.shape[1] ** 0.5)
    grids = codes.reshape(-1, side, side)
    if grids.max() >= codec.num_codes:
        raise DataError(f"image codes: found code {grids.max()}, expected 0 to {codec.num_codes - 1}, those that data.dir can draw")
    squares = codec.decode(np.maximum(grids, 0))
    missing = (grids < 0).repeat(codec.stride, 1).repeat(codec.stride, 2)
    return np.where(missing[..., None], np.uint8(_GREY), squares)
