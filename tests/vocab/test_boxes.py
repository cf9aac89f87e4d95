"""Pixels <-> bins: known values, rounding, clipping, and the round trip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.vocab.boxes import bins_to_box, box_to_bins


def test_known_values_of_the_official_canvas() -> None:
    """The divisor is 512 whatever the picture: 384 px reach bin 749, 256 px bin 500, 480 px bin 937."""
    assert box_to_bins((0, 256, 384, 480), canvas_px=512, num_bins=1000) == (0, 500, 749, 937)
    assert box_to_bins((512, 512, 512, 512), canvas_px=512, num_bins=1000) == (999, 999, 999, 999)
    assert bins_to_box((0, 999, 0, 999), canvas_px=512, num_bins=1000) == (0, 512, 0, 512)


def test_halves_round_to_even() -> None:
    assert box_to_bins((0.5, 1.5, 2.5, 3.5), canvas_px=10, num_bins=11) == (0, 2, 2, 4)


def test_outside_is_clipped() -> None:
    assert box_to_bins((-3, 0, 512.4, 9e9), canvas_px=512, num_bins=1000) == (0, 0, 999, 999)


@settings(deadline=None)
@given(st.data())
def test_round_trip_is_within_half_a_bin(data: st.DataObject) -> None:
    canvas, bins = data.draw(st.integers(8, 2048)), data.draw(st.integers(2, 5000))
    box = [data.draw(st.floats(0, canvas, width=32)) for _ in range(4)]
    found = box_to_bins(box, canvas_px=canvas, num_bins=bins)
    assert all(0 <= b < bins for b in found)
    back = bins_to_box(found, canvas_px=canvas, num_bins=bins)
    # Half a bin, and the error of float32 at a coordinate of that size.
    np.testing.assert_allclose(back, box, rtol=0, atol=canvas / (bins - 1) / 2 + canvas * 2e-7)


@settings(deadline=None)
@given(st.integers(8, 2048), st.integers(2, 5000), st.data())
def test_every_bin_comes_back(canvas: int, bins: int, data: st.DataObject) -> None:
    drawn = tuple(data.draw(st.integers(0, bins - 1)) for _ in range(4))
    assert box_to_bins(bins_to_box(drawn, canvas_px=canvas, num_bins=bins), canvas_px=canvas, num_bins=bins) == drawn


@pytest.mark.parametrize("box", [(0, 1, 2), (0, 1, 2, float("nan")), (0, float("inf"), 2, 3)])
def test_no_box(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="four finite numbers"):
        box_to_bins(box, canvas_px=512, num_bins=1000)


@pytest.mark.parametrize("bins", [(0, 1, 2), (0, 1, 2, 1000), (-1, 0, 1, 2)])
def test_no_bins(bins: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="four numbers from 0 to 999"):
        bins_to_box(bins, canvas_px=512, num_bins=1000)
