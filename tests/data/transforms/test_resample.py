"""Windows of resized pictures, level for level against Pillow."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ofa_jax.data.transforms.resample import resize_window

ROOT = Path(__file__).resolve().parents[3]


def noise(width: int, height: int, seed: int) -> np.ndarray:
    """Levels at both ends, where the filter overshoots, and between."""
    draw = np.random.default_rng(seed)
    levels = draw.integers(0, 256, (height, width, 3), np.uint8)
    return np.where(draw.random((height, width, 1)) < 0.5, levels, np.uint8(255) * draw.integers(0, 2, levels.shape, np.uint8))


def of_pillow(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_a_window_is_that_of_pillows_whole_picture(data: st.DataObject, seed: int):
    side = st.integers(1, 300)
    old_width, old_height, width, height = (data.draw(side) for _ in range(4))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    columns, rows = data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top))
    image = noise(old_width, old_height, seed)
    found = resize_window(image, width=width, height=height, left=left, top=top, columns=columns, rows=rows)
    np.testing.assert_array_equal(found, of_pillow(image, width, height)[top : top + rows, left : left + columns])


SIZES = [(640, 480), (640, 427), (500, 375), (480, 640), (333, 500), (1024, 768), (4000, 3000), (2000, 30), (9, 901), (9, 900), (901, 9)]


@pytest.mark.parametrize("old", SIZES)
def test_sizes_of_public_pictures_and_of_the_official_transforms(old: tuple[int, int]):
    image = noise(*old, seed=old[0])
    for scale in (384, 397, 431, 480):
        longer = int(scale * max(old) / min(old))
        width, height = (min(side, 672) for side in ((longer, scale) if old[0] > old[1] else (scale, longer)))
        left, top = (width - 384) // 2, (height - 384) // 2
        found = resize_window(image, width=width, height=height, left=left, top=top, columns=384, rows=384)
        np.testing.assert_array_equal(found, of_pillow(image, width, height)[top : top + 384, left : left + 384])


def test_mirrored_and_cut_views_and_read_only_pictures():
    image = noise(90, 70, seed=1)
    image.setflags(write=False)
    for view in (image[:, ::-1], image[5:60, 7:80], image[::-1]):
        found = resize_window(view, width=50, height=64, left=3, top=2, columns=40, rows=60)
        np.testing.assert_array_equal(found, of_pillow(np.ascontiguousarray(view), 50, 64)[2:62, 3:43])
    assert found.flags.writeable and found.flags.c_contiguous


@pytest.mark.parametrize("place", [{"left": 30}, {"top": -1}, {"columns": 0}, {"rows": 65}])
def test_a_window_outside_is_an_error(place: dict[str, int]):
    inside = {"width": 50, "height": 64, "left": 0, "top": 0, "columns": 40, "rows": 60}
    with pytest.raises(ValueError, match=r"window: found .* expected it inside of 50 x 64"):
        resize_window(noise(9, 9, 0), **(inside | place))


def _digest(seed: int) -> str:
    return hashlib.sha256(resize_window(noise(120, 80, seed), width=90, height=70, left=1, top=2, columns=64, rows=64)).hexdigest()


def test_threads_that_compile_at_once_agree():
    expected = [hashlib.sha256(of_pillow(noise(120, 80, seed), 90, 70)[2:66, 1:65].tobytes()).hexdigest() for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(_digest, range(8))) == expected


def test_processes_that_compile_at_once_agree_and_keep_the_machine_code(tmp_path: Path):
    """Two at once with an empty cache, then a third, which finds what they have compiled: workers start in tenths of a second."""
    command = [sys.executable, "-c", f"from {__name__} import _digest; print(_digest(0))"]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)

    def compiled() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}

    outputs = [process.communicate()[0] for process in (start(), start())]
    kept = compiled()
    outputs.append(start().communicate()[0])
    assert outputs == [_digest(0) + "\n"] * 3
    assert kept and compiled() == kept
