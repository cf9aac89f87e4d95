"""Records of ArrayRecord shards by ranges of bytes: what an object store can be asked for, where the C++ reader opens local files only.

An ArrayRecord file is one of Riegeli's (github.com/google/riegeli, doc/riegeli_records_file_format.md): chunks of records, cut every 64 KiB
by a block header. Its last block holds a postscript, which says where the footer is; the footer says where each chunk begins
(github.com/google/array_record, cpp/layout.proto). Every size, type and number is checked. The hashes (HighwayHash) are not: they would
take longer in Python than all the rest, so bytes that were changed without changing a size show only where a compressed part or a record
does not decode.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import Range, read_ranges

BLOCK, BLOCK_HEADER = 1 << 16, 24
_CHUNK_HEADER = struct.Struct("<QQQQQ")  # hash of the rest, bytes of data, hash of data, type and number of records, bytes when decoded
_POSTSCRIPT_BYTES = 4096  # of the last block, far more than it takes; the rest is padding
_MAGIC = 0x71930E704FDAE05E
_SIMPLE = ord("r")
_COMPRESSIONS = {ord("b"): "Brotli", ord("s"): "Snappy"}
_MAX_DECODED = 1 << 31  # bytes of a chunk, beyond which its header is damaged
_MAX_VARINT = 10
_MERGE_GAP = BLOCK  # chunks of one shard that lie no farther apart are read together
_MERGED_BYTES = 8 << 20  # but in reads of no more than this


class _Damaged(ValueError):
    """What was found and expected; the caller adds the place."""


class _Index(NamedTuple):
    """Where the chunks of a shard lie."""

    offsets: np.ndarray  # int64 [chunks + 1]; the last is the footer's
    group: int  # records of every chunk but the last, which may have fewer
    records: int


class RemoteShards:
    """The records of a list of shards. A shard's index is read at first use in each process, so it pickles and survives a fork."""

    def __init__(self, shards: Sequence[str], lengths: Sequence[int], sizes: Sequence[int]):
        """lengths, sizes: records and bytes of each shard."""
        self._shards, self._lengths, self._sizes = tuple(shards), tuple(lengths), tuple(sizes)
        self._indexes: dict[int, _Index] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_indexes": {}}

    def read(self, shards: np.ndarray, records: np.ndarray) -> list[bytes]:
        """Returns record `records[i]` of shard `shards[i]` for every i; all are read together, neighbours at once.

        Raises OSError that names the shard, and the record where it is one, for bytes that are damaged; FileNotFoundError for a shard
        that is gone; `StoreError` when the store does not answer.
        """
        self._open(sorted({int(shard) for shard in shards} - self._indexes.keys()))
        wanted: dict[tuple[int, int], list[int]] = {}  # chunk -> places of the answer
        for place, (shard, record) in enumerate(zip(shards.tolist(), records.tolist(), strict=True)):
            wanted.setdefault((shard, record // self._indexes[shard].group), []).append(place)
        reads = list(self._merged(sorted(wanted)))
        out: list[bytes] = [b""] * len(records)
        found = self._ranges([Range(self._shards[shard], first, stop) for shard, first, stop, _ in reads])
        for (shard, first, _, chunks), data in zip(reads, found, strict=True):
            index = self._indexes[shard]
            for chunk in chunks:
                begin, end = int(index.offsets[chunk]), int(index.offsets[chunk + 1])
                places = wanted[shard, chunk]
                expected = min(index.group, index.records - chunk * index.group)
                try:
                    values = decode_chunk(memoryview(data)[begin - first : end - first], begin, records=expected)
                except _Damaged as error:
                    record = min(int(records[place]) for place in places)
                    raise OSError(f"{self._shards[shard]}: record {record} cannot be read ({error})") from error
                for place in places:
                    out[place] = values[int(records[place]) - chunk * index.group]
        return out

    def _merged(self, chunks: list[tuple[int, int]]) -> Iterator[tuple[int, int, int, list[int]]]:
        """Yields (shard, first byte, end, chunks) of reads that hold all chunks."""
        current: tuple[int, int, int, list[int]] | None = None
        for shard, chunk in chunks:
            begin, end = (int(offset) for offset in self._indexes[shard].offsets[chunk : chunk + 2])
            if current and current[0] == shard and begin - current[2] <= _MERGE_GAP and end - current[1] <= _MERGED_BYTES:
                current = (shard, current[1], end, [*current[3], chunk])
                continue
            if current:
                yield current
            current = (shard, begin, end, [chunk])
        if current:
            yield current

    def _open(self, shards: list[int]) -> None:
        """Reads the indexes of shards, all together: their postscripts, then their footers."""
        if not shards:
            return
        starts = [self._sizes[shard] - BLOCK for shard in shards]
        for shard, start in zip(shards, starts, strict=True):
            if start < BLOCK or start % BLOCK:
                self._no_index(shard, f"found {self._sizes[shard]} bytes, expected two or more blocks of {BLOCK}")
        tails = self._ranges([Range(self._shards[s], start, start + _POSTSCRIPT_BYTES) for s, start in zip(shards, starts, strict=True)])
        footers = []
        for shard, start, tail in zip(shards, starts, tails, strict=True):
            try:
                footers.append(_footer_offset(tail, start))
            except _Damaged as error:
                self._no_index(shard, f"postscript: {error}", error)
        found = self._ranges([Range(self._shards[s], begin, end) for s, begin, end in zip(shards, footers, starts, strict=True)])
        for shard, begin, data in zip(shards, footers, found, strict=True):
            try:
                index = _read_footer(data, begin)
            except _Damaged as error:
                self._no_index(shard, f"footer: {error}", error)
            if index.records != self._lengths[shard]:
                raise OSError(f"{self._shards[shard]}: found {index.records} records, expected {self._lengths[shard]} records")
            self._indexes[shard] = index

    def _ranges(self, ranges: list[Range]) -> list[bytes]:
        try:
            return read_ranges(ranges)
        except FileNotFoundError as error:
            gone = next((one.path for one in ranges if one.path in str(error)), str(error))
            raise FileNotFoundError(f"{gone}: the shard is gone") from error

    def _no_index(self, shard: int, found: str, error: Exception | None = None) -> NoReturn:
        raise OSError(f"{self._shards[shard]}: found no readable index ({found}), expected {self._lengths[shard]} records") from error


def decode_chunk(data: bytes | memoryview, begin: int, *, records: int | None = None) -> list[bytes]:
    """Returns the records of the chunk at byte `begin` of a file; `data` is what the file holds from there to the chunk's end or beyond.

    Raises ValueError, which says what was found and expected, for bytes that are no whole chunk of `records` records.
    """
    data = _without_block_headers(data, begin)
    if len(data) < _CHUNK_HEADER.size:
        raise _Damaged(f"found {len(data)} bytes, expected a chunk")
    _, size, _, number, decoded = _CHUNK_HEADER.unpack_from(data)
    kind, count = number & 0xFF, number >> 8
    if kind != _SIMPLE:
        raise _Damaged(f"found a chunk of type {chr(kind)!r}, expected 'r' (ArrayRecord's option transpose is not read)")
    if records is not None and count != records:
        raise _Damaged(f"found a chunk of {count} records, expected {records}")
    body = data[_CHUNK_HEADER.size : _CHUNK_HEADER.size + size]
    if len(body) != size or not size:
        raise _Damaged(f"found {len(body)} bytes of a chunk, expected the {size} that it says it has")
    if max(count, decoded) > _MAX_DECODED:
        raise _Damaged(f"found a chunk of {count} records in {decoded} bytes, expected {_MAX_DECODED} at most")
    compression = body[0]
    sizes_bytes, place = _varint(body, 1)
    values = _decompressed(body[place + sizes_bytes :], compression, decoded)
    packed = _decompressed(body[place : place + sizes_bytes], compression, None, most=_MAX_VARINT * count)
    out, start, place = [], 0, 0
    for _ in range(count):
        length, place = _varint(packed, place)
        out.append(bytes(values[start : start + length]))
        start += length
    if start != decoded or place != len(packed):
        raise _Damaged(f"found records of {start} bytes in all, expected {decoded}")
    return out


def _without_block_headers(data: bytes | memoryview, begin: int) -> bytes | memoryview:
    first = -begin % BLOCK  # where the next block begins
    if first >= len(data):
        return data
    parts = [data[:first]]
    parts += [data[start + BLOCK_HEADER : start + BLOCK] for start in range(first, len(data), BLOCK)]
    return b"".join(parts)


def _varint(data: bytes | memoryview, place: int) -> tuple[int, int]:
    """Returns (the number at `place`, the place after it)."""
    value = shift = 0
    for after in range(place + 1, min(place + _MAX_VARINT, len(data)) + 1):
        value |= (data[after - 1] & 0x7F) << shift
        if data[after - 1] < 0x80:
            return value, after
        shift += 7
    raise _Damaged("found a number without an end")


def _decompressed(part: bytes | memoryview, compression: int, size: int | None, *, most: int = _MAX_DECODED) -> bytes | memoryview:
    """Returns a part of a chunk, which has `size` bytes, or up to `most`."""
    if compression == 0:
        said = len(part)
    elif compression == ord("z"):
        said, place = _varint(part, 0)
        part = part[place:]
    else:
        name = _COMPRESSIONS.get(compression, f"compression {compression}")
        raise _Damaged(f"found {name}, expected records without compression or with Zstandard, which ArrayRecord takes by itself")
    if said > most or (size is not None and said != size):
        raise _Damaged(f"found a part of {said} bytes, expected {size if size is not None else f'{most} at most'}")
    if compression and said:
        zstandard = _zstandard()
        try:
            part = zstandard.ZstdDecompressor().decompress(part, max_output_size=said)
        except zstandard.ZstdError as error:
            raise _Damaged(f"found a part that does not decompress: {error}") from error
        if len(part) != said:
            raise _Damaged(f"found {len(part)} decompressed bytes, expected {said}")
    return part


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise DataError("found no zstandard, expected it for reading shards of object stores; install requirements-stores.txt") from None
    return zstandard


def _fields(message: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Yields (number, value) of a protocol buffer's whole numbers, (number, place of the bytes) of its nested messages."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        value, after = _varint(message, place)
        if key & 7 == 0:
            yield key >> 3, value
        elif key & 7 == 2:
            yield key >> 3, after
            after += value
        else:
            raise _Damaged(f"found a field of wire type {key & 7}, expected a number or a message")
        place = after


def _footer_offset(tail: bytes, start: int) -> int:
    fields = dict(_fields(next(iter(decode_chunk(tail, start)), b"")))
    if fields.get(2) != _MAGIC:
        raise _Damaged(f"found the mark {fields.get(2, 0):#x}, expected ArrayRecord's {_MAGIC:#x}")
    if not 0 < fields.get(1, 0) < start:
        raise _Damaged(f"found a footer at byte {fields.get(1)}, expected it within {start}")
    return fields[1]


def _read_footer(data: bytes, begin: int) -> _Index:
    """Returns what the footer at byte `begin` says: a message of numbers, then one for each chunk."""
    header, *chunks = decode_chunk(data, begin) or [b""]
    about = {number: header[place:] for number, place in _fields(header)}.get(1, b"")
    numbers = dict(_fields(about))
    if numbers.get(1) != 1 or numbers.get(2, 0) != len(chunks):
        raise _Damaged(f"found version {numbers.get(1)} with {numbers.get(2, 0)} chunks, expected version 1 with {len(chunks)}")
    offsets = np.empty(len(chunks) + 1, np.int64)
    counts = np.empty(len(chunks), np.int64)
    for place, chunk in enumerate(chunks):
        fields = dict(_fields(chunk))
        offsets[place], counts[place] = fields.get(1, 0), fields.get(3, 0)
    offsets[-1] = begin
    group = int(counts[0]) if len(counts) else 1
    if (np.diff(offsets) <= 0).any() or (counts[:-1] != group).any() or (counts < 1).any() or (counts > group).any():
        raise _Damaged("found chunks out of order or of different numbers of records")
    if numbers.get(3, 0) != counts.sum():
        raise _Damaged(f"found {counts.sum()} records in the chunks, expected {numbers.get(3, 0)}")
    return _Index(offsets, group, int(counts.sum()))
