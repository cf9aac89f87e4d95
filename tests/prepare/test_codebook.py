from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.prepare import codebook


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3)).astype(np.uint8)


def test_patches_are_in_raster_order() -> None:
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[0, 4:, :4] = 9  # third of four patches
    assert codebook.patches_of(image, 4).shape == (1, 4, 48)
    assert codebook.patches_of(image, 4)[0].mean(axis=1).tolist() == [0, 0, 9, 0]


def test_the_central_square_is_half_the_side() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:48, 16:48] = 1
    assert codebook.central_square(image).shape == (32, 32, 3) and codebook.central_square(image).all()


def test_codes_are_the_nearest_centres_and_repeatable(pictures: np.ndarray) -> None:
    centers = codebook.fit(pictures, stride=4, num_codes=8, seed=1)
    assert centers.shape == (8, 4, 4, 3) and centers.dtype == np.uint8
    assert (centers == codebook.fit(pictures, stride=4, num_codes=8, seed=1)).all()
    assert (np.diff(centers.reshape(8, -1).mean(axis=1)) >= -1).all()
    codes = codebook.encode(pictures, centers)
    patches = codebook.patches_of(codebook.central_square(pictures), 4)
    brute = ((patches[:, :, None] - centers.reshape(8, -1).astype(np.float32)) ** 2).sum(axis=-1).argmin(axis=-1)
    assert codes.dtype == np.int32 and codes.shape == (20, 4) and (codes == brute).all()


def test_k_means_finds_exact_colours() -> None:
    colours = np.arange(0, 200, 20, dtype=np.uint8)
    pictures = np.broadcast_to(colours[:, None, None, None], (10, 16, 16, 3))
    centers = codebook.fit(pictures, stride=4, num_codes=10, seed=3)
    assert centers[:, 0, 0, 0].tolist() == colours.tolist()
    with pytest.raises(ValueError, match="10 distinct patches, expected at least num_codes = 11"):
        codebook.fit(pictures, stride=4, num_codes=11, seed=3)


def test_baselines_copy_the_nearest_visible_patch() -> None:
    centers = np.array([0, 100, 200], np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    columns = np.full((1, 64, 64, 3), 200, np.uint8)
    columns[:, :, :32] = 0  # left half dark: cells nearest to the upper or lower edge, and ties with it, copy their own column
    found = codebook.baselines(columns, centers, marginal=np.array([2, 2, 0]))
    assert found == {"nearest_visible": 1.0, "marginal": 0.5}


def test_a_codebook_is_saved_whole_and_a_missing_one_is_named(pictures: np.ndarray, tmp_path: Path) -> None:
    centers = codebook.fit(pictures, stride=4, num_codes=8, seed=1)
    codebook.save(tmp_path / "codebook.npz", centers)
    assert (codebook.load(tmp_path / "codebook.npz") == centers).all()
    assert [path.name for path in tmp_path.iterdir()] == ["codebook.npz"]
    with pytest.raises(DataError, match="no.npz is missing, expected the patches"):
        codebook.load(tmp_path / "no.npz")
