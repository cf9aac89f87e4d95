"""Networks that a user brings to judge pictures by (features for FID, class probabilities for the Inception score, embeddings of pictures
and texts for the CLIP score), each named as FILE.py:function:

    def features(pictures: np.ndarray) -> np.ndarray:
        return network(pictures / 255.0)

One call a batch: `pictures` is uint8 [n, h, w, 3], of one size; the answer is floating point, [n, width], the same width for every batch.
The last batch may be smaller. A network of texts takes a list of str instead. What resizes and normalises is the function's own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.load import read_function

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Network:
    """A user's function and the name that errors give it."""

    name: str
    function: Callable[[Any], Any]

    @classmethod
    @functools.cache  # its file may load a large model
    def load(cls, spec: str, *, flag: str) -> Network:
        """Returns the function that "FILE.py:function" names, read once a process. Raises ConfigError, which names `flag`, where there
        is none."""
        return cls(spec, read_function(spec, flag=flag))

    def digest(self) -> str:
        """Returns a digest of the file it is in: another version of it makes other results."""
        return hashlib.sha256(Path(self.name.rpartition(":")[0]).read_bytes()).hexdigest()

    def of_pictures(self, pictures: Iterable[np.ndarray], *, width: int | None = None, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Returns float32 [n, width]: what the function says of uint8 pictures [h, w, 3], which may come one by one.

        `width` is what is expected; None takes what the first batch has. Raises DataError where a picture is none, pictures of a batch
        differ in size or there are none, and ConfigError where the function answers with another shape or kind of number, or with one
        that is not finite.
        """
        return self._of_batches(_picture_batches(pictures, batch_size), width)

    def of_texts(self, texts: Sequence[str], *, width: int | None = None, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Returns float32 [n, width]: what the function says of texts; `width` and errors as those of `of_pictures`."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DataError("network of texts: found something else than texts, expected a list of str")
        return self._of_batches(([*texts[i : i + batch_size]] for i in range(0, len(texts), batch_size)), width)

    def _of_batches(self, batches: Iterable[Sequence[Any]], width: int | None) -> np.ndarray:
        found: list[np.ndarray] = []
        for batch in batches:
            found.append(self._checked(self.function(batch), len(batch), width, first=sum(map(len, found))))
            width = found[-1].shape[1]
        if not found:
            raise DataError(f"network {self.name}: found nothing to judge, expected one or more")
        return np.concatenate(found)

    def _checked(self, answer: Any, num: int, width: int | None, *, first: int) -> np.ndarray:
        try:
            values = np.asarray(answer)
        except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors on a device, or with gradients
            raise ConfigError(f"network {self.name}: found {type(answer).__name__}, expected an array ({error})") from error
        if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
            raise ConfigError(f"network {self.name}: found numbers of type {values.dtype}, expected floating point")
        if values.ndim != 2 or len(values) != num or values.shape[1] != (width or values.shape[1]) or values.shape[1] == 0:
            raise ConfigError(f"network {self.name}: found {list(values.shape)} for {num} of them, expected [{num}, {width or 'width'}]")
        values = values.astype(np.float32)
        broken = np.flatnonzero(~np.isfinite(values).all(1))
        if len(broken):
            raise ConfigError(f"network {self.name}: number {first + broken[0]}: found a value that is not finite, expected numbers")
        return values


def _picture_batches(pictures: Iterable[np.ndarray], batch_size: int) -> Iterable[np.ndarray]:
    """Yields uint8 [n, h, w, 3] of at most `batch_size` pictures. Raises DataError where one is none or of another size."""
    rest, start = iter(pictures), 0
    while some := list(itertools.islice(rest, batch_size)):
        for i, picture in enumerate(some):
            found = np.asarray(picture)
            if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or 0 in found.shape:
                raise DataError(f"picture {start + i}: found {found.dtype} {list(found.shape)}, expected uint8 [height, width, 3]")
            if found.shape != np.shape(some[0]):
                raise DataError(f"picture {start + i}: found {list(found.shape)} after {list(np.shape(some[0]))}, expected one size")
        yield np.stack(some)
        start += len(some)
