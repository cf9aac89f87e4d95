"""Fashion-MNIST: 70,000 grey pictures of 28 px in ten classes (https://github.com/zalandoresearch/fashion-mnist; Debian's package
`dataset-fashion-mnist` has the files in /usr/share/datasets/fashion-mnist).

Four files in the IDX form of MNIST (http://yann.lecun.com/exdb/mnist): `{train,t10k}-images-idx3-ubyte.gz` and
`{train,t10k}-labels-idx1-ubyte.gz`. A file is two zero bytes, 0x08 for unsigned bytes, the number of axes, their sizes as big-endian
32-bit numbers, then the values in C order. Words of the classes are the page's, in lower case, as the targets of other tasks are.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption, ImageRecord
from ofa_jax.data.storage import read_bytes
from ofa_jax.prepare.layouts.base import Found, Input, Layout
from ofa_jax.prepare.layouts.gathered import one_file
from ofa_jax.prepare.layouts.streams import record_error

CLASSES = ("t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_FILES = {"train": "train", "validation": "train", "test": "t10k"}
_PART_PICTURES = 10_000


@dataclasses.dataclass(frozen=True)
class FashionMnist(Layout):
    """A record a picture, `<file>/<place>`, as PNG; its caption is the words of its class.

    The last `held_out` pictures of the training files are the validation split, which the makers do not have; 0: there is none.
    """

    PAGE: ClassVar[str] = "https://github.com/zalandoresearch/fashion-mnist"

    held_out: int = 5_000

    def inputs(self, gathered: Path) -> list[Input]:
        found = []
        for split, (path, start, stop) in self._ranges().items():
            found += [
                Input(f"{split}-{first:05d}", split, path, (first, min(first + _PART_PICTURES, stop)))
                for first in range(start, stop, _PART_PICTURES)
            ]
        return found

    def read(self, item: Input) -> Iterator[Found]:
        assert item.span is not None
        name = _FILES[item.split]
        pictures, labels = _read_idx(item.path, axes=3), _read_idx(one_file(self, f"{name}-labels-idx1-ubyte.gz"), axes=1)
        if len(pictures) != len(labels):
            raise DataError(f"{item.path}: found {len(pictures):,} pictures and {len(labels):,} labels, expected as many of both")
        for place in range(*item.span):
            record, label = f"{name}/{place:05d}", int(labels[place])
            if label >= len(CLASSES):
                expected = f"0 to {len(CLASSES) - 1}"
                yield record_error(self, record, reason="label", field="(label)", found=str(label), expected=expected)
                continue
            file = io.BytesIO()
            Image.fromarray(pictures[place]).save(file, "PNG")
            height, width = pictures.shape[1:]
            yield ImageRecord(record, self.dataset, file.getvalue(), width, height, captions=(Caption(CLASSES[label]),))

    def _ranges(self) -> dict[str, tuple[str, int, int]]:
        """Returns the file and the places (first, one past the last) of every split that has any. Raises `DataError`."""
        train, test = (one_file(self, f"{name}-images-idx3-ubyte.gz") for name in ("train", "t10k"))
        num, num_test = len(_read_idx(train, axes=3)), len(_read_idx(test, axes=3))
        if not 0 <= self.held_out < num:
            raise DataError(f"{self.dataset}: option held_out: found {self.held_out}, expected 0 to {num - 1} of {num:,} pictures")
        cut = num - self.held_out
        ranges = {"train": (train, 0, cut), "validation": (train, cut, num), "test": (test, 0, num_test)}
        return {split: found for split, found in ranges.items() if found[1] < found[2]}


def _read_idx(path: str, *, axes: int) -> np.ndarray:
    """Returns the unsigned bytes of a gzipped IDX file. Raises `DataError` for a file of another form, or one that was cut."""
    try:
        data = gzip.decompress(read_bytes(path))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: found {error}, expected a whole gzip file") from error
    head = 4 + 4 * axes
    if len(data) < head or data[:4] != bytes((0, 0, 8, axes)):
        raise DataError(f"{path}: found bytes beginning with {data[:4].hex(' ')}, expected {bytes((0, 0, 8, axes)).hex(' ')}")
    shape = struct.unpack(f">{axes}I", data[4:head])
    if len(data) - head != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path}: found {len(data) - head:,} values, expected {' x '.join(map(str, shape))} as its head says")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)
