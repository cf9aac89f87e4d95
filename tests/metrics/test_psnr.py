"""Peak signal-to-noise ratios against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_jax.metrics.psnr import psnr


def test_known_values():
    black = np.zeros((3, 4, 4, 3), np.uint8)
    other = black.copy()
    other[1] = 255
    other[2, 0, 0, 0] = 255  # one of 48 values
    np.testing.assert_allclose(psnr(other, black), [100.0, 0.0, 10 * np.log10(48)])


def test_noise():
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 256, (2, 5, 8, 8, 3)).astype(np.uint8)
    expected = [20 * np.log10(255 / np.sqrt(np.square(x.astype(float) - y.astype(float)).mean())) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(a, b), expected)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="psnr: found pictures"):
        psnr(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 5, 3), np.uint8))
