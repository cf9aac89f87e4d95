"""Peak signal-to-noise ratio of pictures of eight bits."""

from __future__ import annotations

import numpy as np

PEAK = 255.0
BEST_DB = 100.0  # given to equal pictures, whose ratio is infinite


def psnr(made: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Returns 10 log10(255^2 / mean squared error) in dB, float64 [n], for uint8 pictures [n, h, w, 3]; at most 100.

    Raises ValueError when the shapes differ.
    """
    if made.shape != originals.shape:
        raise ValueError(f"psnr: found pictures {made.shape}, expected {originals.shape}")
    error = np.mean(np.square(made.astype(np.float64) - originals), axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.minimum(10.0 * np.log10(PEAK**2 / error), BEST_DB)
