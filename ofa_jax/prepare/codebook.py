"""A small image codebook from pixels alone: k-means of `code_stride` patches, for runs without a trained VQGAN.

OFA's codes are those of a VQGAN with f=8 (OFA paper, section 3.2); this stands in for it where nothing can be downloaded: a code is the
nearest of `num_codes` mean patches, and the central half-side square of a picture becomes (side / 2 / stride)^2 codes in raster order.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy import sparse

from ofa_jax.config.errors import DataError


def central_square(images: np.ndarray) -> np.ndarray:
    """Returns the central half-side square of square pictures [..., side, side, 3]."""
    side = images.shape[-2]
    low = side // 4
    return images[..., low : low + side // 2, low : low + side // 2, :]


def patches_of(images: np.ndarray, stride: int) -> np.ndarray:
    """Returns float32 [n, rows * columns, stride * stride * 3]: the patches of uint8 [n, h, w, 3] in raster order."""
    n, height, width, _ = images.shape
    grid = images.reshape(n, height // stride, stride, width // stride, stride, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(n, -1, stride * stride * 3).astype(np.float32)


def nearest(patches: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns int32 [...]: the nearest row of float32 `centers` [codes, d] for patches [..., d]; the lowest index on ties."""
    distance = (centers**2).sum(axis=1) - 2 * patches @ centers.T
    return distance.argmin(axis=-1).astype(np.int32)


def fit(images: np.ndarray, *, stride: int, num_codes: int, seed: int, rounds: int = 25) -> np.ndarray:
    """Returns uint8 centres [num_codes, stride, stride, 3] of the patches of the central squares of uint8 pictures [n, side, side, 3].

    Lloyd's algorithm from distinct random patches; a centre that loses all its patches moves to the patch that is served worst.
    Raises ValueError when there are fewer distinct patches than codes.
    """
    points = patches_of(central_square(images), stride).reshape(-1, stride * stride * 3)
    draw = np.random.default_rng(seed)
    distinct = np.unique(points, axis=0)
    if len(distinct) < num_codes:
        raise ValueError(f"codebook: found {len(distinct)} distinct patches, expected at least num_codes = {num_codes}")
    centers = distinct[np.sort(draw.choice(len(distinct), num_codes, replace=False))]
    for _ in range(rounds):
        codes = nearest(points, centers)
        members = sparse.csr_array((np.ones(len(points), np.float32), (codes, np.arange(len(points)))), shape=(num_codes, len(points)))
        counts = np.bincount(codes, minlength=num_codes)
        centers = (members @ points) / np.maximum(counts, 1)[:, None]
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            worst = np.argsort(-((points - centers[codes]) ** 2).sum(axis=1), kind="stable")
            centers[empty] = points[worst[: len(empty)]]
    # Sorted by brightness, so that neighbouring ids look alike and the file does not depend on the random start's order.
    order = np.argsort(centers.mean(axis=1), kind="stable")
    return np.rint(centers[order]).astype(np.uint8).reshape(num_codes, stride, stride, 3)


def encode(images: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns int32 [n, (side / 2 / stride)^2]: codes of the central squares of uint8 [n, side, side, 3], raster order."""
    stride = centers.shape[1]
    return nearest(patches_of(central_square(images), stride), centers.reshape(len(centers), -1).astype(np.float32))


def save(path: Path, centers: np.ndarray) -> None:
    """Writes `centers` (uint8 [num_codes, stride, stride, 3]) in one move."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, centers=centers)
    os.replace(partial, path)


def load(path: Path) -> np.ndarray:
    """Returns uint8 centres [num_codes, stride, stride, 3]. Raises `DataError` when the file is missing."""
    if not path.exists():
        raise DataError(f"{path} is missing, expected the patches that the codes in its folder were made of")
    with np.load(path) as file:
        return file["centers"]


def baselines(images: np.ndarray, centers: np.ndarray, *, marginal: np.ndarray) -> dict[str, float]:
    """Returns accuracies of two predictions of the hidden codes that know no picture content.

    `nearest_visible` copies the code of the nearest patch outside the square (the upper or left one on ties), `marginal` always says the
    most frequent code of `marginal` (training codes of any shape).
    """
    stride = centers.shape[1]
    flat = centers.reshape(len(centers), -1).astype(np.float32)
    codes = nearest(patches_of(images, stride), flat)
    side = images.shape[1] // stride
    codes = codes.reshape(-1, side, side)
    low, high = side // 4, side // 4 + side // 2
    hidden = codes[:, low:high, low:high]
    copied = np.empty_like(hidden)
    for row in range(low, high):
        for column in range(low, high):
            options = (
                (row - low, low - 1, column),
                (column - low, row, low - 1),
                (high - 1 - row, high, column),
                (high - 1 - column, row, high),
            )
            _, y, x = min(options, key=lambda option: option[0])
            copied[:, row - low, column - low] = codes[:, y, x]
    return {
        "nearest_visible": float((copied == hidden).mean()),
        "marginal": float((hidden == np.bincount(marginal.ravel()).argmax()).mean()),
    }
