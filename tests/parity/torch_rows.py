"""Times a plain torch DataLoader with OFA's transforms of captions on JPEG files; `launch/bench.py data --peer=PYTHON` runs it.

    PYTHON tests/parity/torch_rows.py FOLDER PX REPEATS

PYTHON is an environment with torch, Pillow, NumPy and OpenCV; nothing of this repository is imported. Pictures are opened and resized
with Pillow, as OFA's loader does, changed by RandAugment with OpenCV and NumPy, and become normalised float32 tensors of [3, px, px].
Prints one line of JSON: images a second of process time, `plain` and `augmented`, medians over the repeats, on one core.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

GREY = (128, 128, 128)
DRAW = np.random.default_rng(0)


def resize_and_crop(picture: Image.Image, px: int) -> Image.Image:
    """RandomResize (shorter side of px to 1.25 px, at most 480; both sides at most 1.4 times the largest), then a centre crop."""
    largest = max(px, min(px * 5 // 4, 480))
    scale, clamp = random.randint(px, largest), largest * 7 // 5
    width, height = picture.size
    longer = int(scale * max(width, height) / min(width, height))
    width, height = (scale, longer) if width <= height else (longer, scale)
    width, height = min(width, clamp), min(height, clamp)
    left, top = round((width - px) / 2), round((height - px) / 2)
    return picture.resize((width, height), Image.BICUBIC).crop((left, top, left + px, top + px))


def by_histogram(image: np.ndarray, stretch: bool) -> np.ndarray:
    """AutoContrast (`stretch`) or Equalize, channel by channel, by a table of 256 levels."""
    channels = []
    for channel in cv2.split(image):
        count = np.bincount(channel.ravel(), minlength=256)
        levels = np.flatnonzero(count)
        if stretch:
            low, high = int(levels[0]), int(levels[-1])
            table = np.arange(256) if high <= low else (np.arange(256) - low) * 255.0 / (high - low)
        else:
            step = int(count.sum() - count[levels[-1]]) // 255
            table = np.arange(256) if step == 0 else (np.cumsum(count) - count + step // 2) // step
        channels.append(table.clip(0, 255).astype(np.uint8)[channel])
    return cv2.merge(channels)


def sharpen(image: np.ndarray) -> np.ndarray:
    """Away from a 3 x 3 smoothing by a factor of 1.36, border left alone."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = cv2.filter2D(image, -1, kernel).astype(np.float32)
    result = (smooth + 1.36 * (image - smooth)).clip(0, 255).astype(np.uint8)
    result[[0, -1]], result[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return result


def rand_augment(image: np.ndarray) -> np.ndarray:
    """Two of ten operations, each applied half of the time, at 7 of 10."""
    height, width = image.shape[:2]

    def warp(matrix: np.ndarray) -> np.ndarray:
        return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=GREY)

    for name in DRAW.choice(10, 2):
        if DRAW.random() > 0.5:
            continue
        sign = 1 if DRAW.random() > 0.5 else -1
        if name == 1:
            image = by_histogram(image, stretch=True)
        elif name == 2:
            image = by_histogram(image, stretch=False)
        elif name == 3:
            image = (np.arange(256) * 1.36).clip(0, 255).astype(np.uint8)[image]
        elif name == 4:
            image = sharpen(image)
        elif name == 5:
            image = warp(np.float32([[1, sign * 0.21, 0], [0, 1, 0]]))
        elif name == 6:
            image = warp(np.float32([[1, 0, 0], [sign * 0.21, 1, 0]]))
        elif name == 7:
            image = warp(np.float32([[1, 0, sign * 7], [0, 1, 0]]))
        elif name == 8:
            image = warp(np.float32([[1, 0, 0], [0, 1, sign * 7]]))
        elif name == 9:
            image = warp(cv2.getRotationMatrix2D((width / 2, height / 2), sign * 21, 1))
    return image


def pixels(path: Path, px: int, augment: bool) -> np.ndarray:
    """uint8 [px, px, 3] of a file."""
    found = np.array(resize_and_crop(Image.open(path).convert("RGB"), px))
    return rand_augment(found) if augment else found


def main(folder: Path, px: int, repeats: int) -> int:
    """Reads all files of `folder` in batches of 16, `repeats` times after one that warms up, plain and augmented in turn."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    files = sorted(folder.glob("*.jpg"))

    class Pictures(Dataset):
        def __init__(self, augment: bool):
            self.augment = augment

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int):
            tensor = torch.from_numpy(pixels(files[index], px, self.augment)).permute(2, 0, 1).contiguous()
            return tensor.to(torch.float32).div(255).sub_(0.5).div_(0.5)  # ToTensor, Normalize

    loaders = {name: DataLoader(Pictures(name == "augmented"), batch_size=16, num_workers=0) for name in ("plain", "augmented")}
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(1 + repeats):
        for name, loader in loaders.items():
            start = time.process_time()
            for batch in loader:
                assert tuple(batch.shape[1:]) == (3, px, px)
            times[name].append(time.process_time() - start)
    print(json.dumps({name: len(files) / statistics.median(took[1:]) for name, took in times.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
