"""Image codes in side shards beside a dataset's own, one record for each of its records, joined by index: those of the central half of
every picture in `<dataset>/codes/`, those of whole pictures in `<dataset>/codes_whole/`. A dataset may have both.

A record is the codes as little-endian uint16 (uint32 where the codebook is larger), raster order; it is empty for a picture without codes.
`prepare.codes` writes them; the manifest there says which VQGAN they are of.
"""

from __future__ import annotations

import numpy as np

CODES_FOLDERS: dict[str, str] = {"central": "codes", "whole": "codes_whole"}  # by `config.rows.CodeArea`
CODES_SCHEMA_VERSION = 1
_WIDE = b"\x01"  # first byte of a record: two or four bytes a code
_NARROW = b"\x00"


def pack_codes(codes: np.ndarray | None) -> bytes:
    """Returns the record of codes int [n], or that of none."""
    if codes is None:
        return b""
    wide = codes.size > 0 and int(codes.max()) > np.iinfo(np.uint16).max
    return _WIDE + codes.astype("<u4").tobytes() if wide else _NARROW + codes.astype("<u2").tobytes()


def unpack_codes(data: bytes) -> np.ndarray | None:
    """Returns int32 [n] or None. Raises ValueError for bytes that `pack_codes` does not write."""
    if not data:
        return None
    kinds = {_NARROW: "<u2", _WIDE: "<u4"}
    if data[:1] not in kinds or (len(data) - 1) % np.dtype(kinds[data[:1]]).itemsize:
        raise ValueError(f"found {len(data)} bytes beginning with {data[:1].hex()}, expected packed codes")
    return np.frombuffer(data, kinds[data[:1]], offset=1).astype(np.int32)
