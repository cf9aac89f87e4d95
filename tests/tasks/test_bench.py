"""launch/bench.py data runs and says rates, also of a peer; how high they are, is no test."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ofa_jax.tasks.bench import decode_and_cut, decode_and_resize, decode_and_resize_compiled, encode, photograph, smaller_decoding

ROOT = Path(__file__).resolve().parents[2]
# As much of torch as the peer's script uses, so that it is run where torch is not installed.
TORCH = """
import numpy as np

float32 = np.float32

class Tensor:
    def __init__(self, array): self.array = array
    shape = property(lambda self: self.array.shape)
    def permute(self, *axes): return Tensor(self.array.transpose(axes))
    def contiguous(self): return Tensor(np.ascontiguousarray(self.array))
    def to(self, kind): return Tensor(self.array.astype(kind))
    def div(self, by): return Tensor(self.array / by)
    div_ = div
    def sub_(self, by): return Tensor(self.array - by)

from_numpy = Tensor
def set_num_threads(count): pass
"""
DATA = """
import numpy as np
import torch

class Dataset: pass

class DataLoader:
    def __init__(self, dataset, batch_size, num_workers):
        assert num_workers == 0
        self.dataset, self.batch_size = dataset, batch_size
    def __iter__(self):
        for start in range(0, len(self.dataset), self.batch_size):
            stop = min(start + self.batch_size, len(self.dataset))
            batch = np.stack([self.dataset[i].array for i in range(start, stop)])
            assert batch.min() >= -1 and batch.max() <= 1
            yield torch.Tensor(batch)
"""


@pytest.fixture
def peer(tmp_path: Path) -> str:
    package = tmp_path / "packages" / "torch"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text(TORCH)
    (package / "utils" / "__init__.py").write_text("")
    (package / "utils" / "data.py").write_text(DATA)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{package.parent}" exec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def main():
    return runpy.run_path(str(ROOT / "launch" / "bench.py"))["main"]


def test_rates_of_rows_and_of_a_peer_are_printed(main, capsys, peer: str):
    assert main(["launch/bench.py", "data", "--images=3", "--repeats=1", "--image-px=64", f"--peer={peer}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"data: 3 JPEG files of 640 x 480, quality 90, \d+ kB on average, to 64 px; images/s on one core", lines[0])
    number = r" +[\d.]+"
    assert re.fullmatch(rf"decode \+ resize alone{number}", lines[1])
    of_floors = rf"{number} of decode \+ resize,{number} of compiled,{number} of the window"
    assert re.fullmatch(rf"the same, compiled{number}", lines[2])
    assert re.fullmatch(rf"the crop's window alone{number}", lines[3])
    assert re.fullmatch(rf"caption rows{number}{of_floors}", lines[4])
    assert re.fullmatch(rf"caption rows, RandAugment{number}{of_floors}", lines[5])
    assert re.fullmatch(rf"peer, pictures{number}   ofa_jax{number} times that", lines[6])
    assert re.fullmatch(rf"peer, RandAugment{number}   ofa_jax{number} times that", lines[7])
    assert len(lines) == 8


@pytest.mark.parametrize("python", ["/nowhere/python", "false"])
def test_a_peer_that_fails_is_said(main, capsys, python: str):
    assert main(["launch/bench.py", "data", "--images=1", "--repeats=1", "--image-px=64", f"--peer={python}"]) == 2
    assert f"{python}" in capsys.readouterr().err


def test_the_gain_of_smaller_decoding_is_said():
    line = smaller_decoding(400, 304, px=64, repeats=1, seeds=1)
    number = r"[\d.]+"
    assert re.fullmatch(rf"400 x 304: whole {number}, smaller {number} images/s, gain {number}, PSNR {number} dB or more", line)
    assert "PSNR inf" in smaller_decoding(150, 100, px=64, repeats=1, seeds=1)


def test_the_floor_resizes_as_a_row_does():
    data = encode(photograph(200, 150, 0))
    shorter = int(np.random.default_rng(3).integers(64, 81))
    whole = decode_and_resize(data, 64, np.random.default_rng(3))
    assert whole.shape == (shorter, shorter * 200 // 150, 3)
    np.testing.assert_array_equal(decode_and_resize_compiled(data, 64, np.random.default_rng(3)), whole)
    left, top = round((whole.shape[1] - 64) / 2), round((shorter - 64) / 2)
    np.testing.assert_array_equal(decode_and_cut(data, 64, np.random.default_rng(3)), whole[top : top + 64, left : left + 64])


def test_the_peers_transforms_are_those_of_ofa(tmp_path: Path):
    """The same tones and sizes as ours, so that the two do the same work."""
    script = runpy.run_path(str(ROOT / "tests" / "parity" / "torch_rows.py"))
    from ofa_jax.data.transforms import randaugment

    image = photograph(64, 48, 1)
    np.testing.assert_array_equal(script["by_histogram"](image, stretch=False), randaugment.equalize(image))
    assert np.abs(script["by_histogram"](image, stretch=True).astype(int) - randaugment.autocontrast(image)).max() <= 1
    assert np.abs(script["sharpen"](image).astype(int) - randaugment.sharpness(image)).max() <= 1
    path = tmp_path / "a.jpg"
    Image.fromarray(image).save(path)
    for _ in range(20):
        found = script["pixels"](path, 32, True)
        assert found.shape == (32, 32, 3) and found.dtype == np.uint8
    assert "ofa_jax" not in (ROOT / "tests" / "parity" / "torch_rows.py").read_text()
