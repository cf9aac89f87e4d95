"""Box geometry: exact on integers, inverse where there is one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.data.records import Box
from ofa_jax.data.transforms.boxes import clip_box, crop_box, flip_box, has_area, scale_box

numbers = st.integers(-100, 100)
boxes = st.builds(Box, numbers, numbers, numbers, numbers)


@given(boxes, st.integers(1, 100))
def test_mirroring_twice_changes_nothing(box: Box, width: int):
    assert flip_box(flip_box(box, width=width), width=width) == box


@given(boxes, st.sampled_from([0.25, 0.5, 2.0, 4.0]), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_scaling_back_changes_nothing(box: Box, x: float, y: float):
    assert scale_box(scale_box(box, x=x, y=y), x=1 / x, y=1 / y) == box


@given(boxes)
def test_clipping_is_the_intersection_with_the_picture(box: Box):
    clipped = clip_box(box, width=50, height=40)
    assert 0 <= clipped.x0 <= 50 and 0 <= clipped.y1 <= 40
    assert clip_box(clipped, width=50, height=40) == clipped
    if has_area(clipped):
        assert has_area(box) or box.x1 <= box.x0 or box.y1 <= box.y0
        assert clipped == Box(max(box.x0, 0), max(box.y0, 0), min(box.x1, 50), min(box.y1, 40))


def test_a_crop_moves_and_clips():
    assert crop_box(Box(10, 10, 30, 20), left=15, top=5, width=10, height=10) == Box(0, 5, 10, 10)
    assert not has_area(crop_box(Box(10, 10, 14, 20), left=15, top=5, width=10, height=10))
    assert flip_box(Box(1, 2, 3, 4), width=10) == Box(7, 2, 9, 4)
