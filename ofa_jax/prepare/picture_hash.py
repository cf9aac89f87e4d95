"""Hashes of pictures: equal bytes by one, the same picture encoded, scaled or cropped otherwise by another.

The perceptual hash is the sign of 256 low frequencies of the discrete cosine transform of the small grey picture (after Zauner 2010,
"Implementation and benchmarking of perceptual image hash functions", which uses 64). Encoding and scaling move few of its bits. A crop
moves many, so a picture that is looked for is entered several times, cropped by a little on each side; what is compared with it is
hashed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import cv2
import numpy as np

WORDS = 4  # 64-bit words of a perceptual hash
BITS = 64 * WORDS
GREY_PX = 64  # side of the grey picture that is transformed
_SIDE = 16  # of the square of frequencies
_FLAT = 2.0  # grey levels of standard deviation below which a picture has no frequencies to speak of
CROPS = (0.0, 0.025, 0.05, 0.075, 0.1)  # shares of a side that a slightly cropped copy may lack
_BANDS = BITS // 16
NONE = np.zeros(WORDS, np.uint64)  # hash of a flat picture, which is never compared
COLOURS = 8 * 8 * 3  # numbers of the smallest picture: mean colours of 8 x 8 fields
MOST_LEVELS = 10.0  # mean difference of those numbers, in grey levels, of a picture and its copy


def short_digest(data: bytes) -> int:
    """Returns 64 bits of the BLAKE2 digest of some bytes; never 0, which stands for nothing."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """Returns the hash, uint64 [4], of a picture, uint8 [height, width, 3]; `NONE` for a flat one."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (GREY_PX, GREY_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < _FLAT:
        return NONE.copy()
    low = cv2.dct(small)[:_SIDE, :_SIDE].reshape(-1)
    # The mean brightness is no frequency: its bit says instead whether the picture is bright.
    low[0] -= GREY_PX * 128.0
    threshold = np.median(low[1:])
    return np.packbits(low > threshold, bitorder="little").view("<u8").astype(np.uint64)


def mean_colours(pixels: np.ndarray) -> np.ndarray:
    """Returns the mean colours of 8 x 8 fields of a picture, uint8 [192]. Pictures whose hashes are near by chance differ in them."""
    return cv2.resize(pixels, (8, 8), interpolation=cv2.INTER_AREA).reshape(-1)


def crops(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yields a picture as it is, and slightly cropped: a share off all sides, off left and right, off top and bottom, off each side."""
    height, width = pixels.shape[:2]
    yield pixels
    for share in CROPS[1:]:
        dx, dy = round(width * share), round(height * share)
        for left, top, right, bottom in ((1, 1, 1, 1), (1, 0, 1, 0), (0, 1, 0, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
            yield pixels[dy * top : height - dy * bottom, dx * left : width - dx * right]


class HashTable:
    """Perceptual hashes that are looked for, each with the number of its picture.

    A hash is found through its bands of 16 bits: a copy that differs in few bits has at least one band in common. At 24 of 256 bits
    spread evenly, 97 of 100 copies have one.
    """

    def __init__(self, hashes: np.ndarray, colours: np.ndarray, owners: np.ndarray):
        """hashes: uint64 [n, 4]. colours: uint8 [n, 192]. owners: int64 [n]. Flat pictures are left out."""
        real = hashes.any(axis=1)
        self._hashes, self._owners = np.ascontiguousarray(hashes[real], "<u8"), owners[real]
        self._colours = colours[real]
        bands = self._hashes.view("<u2").reshape(-1, _BANDS)
        self._orders = [np.argsort(bands[:, band], kind="stable") for band in range(_BANDS)]
        self._sorted = [bands[order, band] for band, order in enumerate(self._orders)]

    def __len__(self) -> int:
        return len(self._hashes)

    def match(self, hashes: np.ndarray, colours: np.ndarray, *, most_bits: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each hash, uint64 [n, 4], and its colours, uint8 [n, 192], the owner of the nearest entry found within `most_bits`
        bits and `MOST_LEVELS` levels (-1: none), and the bits (257: none)."""
        best = np.full(len(hashes), BITS + 1, np.int64)
        owner = np.full(len(hashes), -1, np.int64)
        if not len(self):
            return owner, best
        hashes = np.ascontiguousarray(hashes, "<u8")
        bands = hashes.view("<u2").reshape(-1, _BANDS)
        real = hashes.any(axis=1)
        for band in range(_BANDS):
            low = np.searchsorted(self._sorted[band], bands[:, band], side="left")
            high = np.searchsorted(self._sorted[band], bands[:, band], side="right")
            count = np.where(real, high - low, 0)
            if not count.any():
                continue
            query = np.repeat(np.arange(len(hashes)), count)
            start = np.repeat(low - (np.cumsum(count) - count), count)
            entry = self._orders[band][start + np.arange(len(query))]
            bits = np.bitwise_count(hashes[query] ^ self._hashes[entry]).sum(axis=1).astype(np.int64)
            near = np.flatnonzero(bits <= most_bits)
            levels = np.abs(colours[query[near]].astype(np.int16) - self._colours[entry[near]]).mean(axis=1)
            near = near[levels <= MOST_LEVELS]
            query, entry, bits = query[near], entry[near], bits[near]
            order = np.lexsort((entry, bits))[::-1]  # the last write wins: the nearest, then the first entry
            closer = bits[order] < best[query[order]]
            query, entry, bits = query[order][closer], entry[order][closer], bits[order][closer]
            best[query], owner[query] = bits, self._owners[entry]
        return owner, best
