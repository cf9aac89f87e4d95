"""Lines and bytes of files, whatever they are compressed with, and pictures in base64 of either alphabet."""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, Any

from ofa_jax.config.errors import DataError
from ofa_jax.prepare.storage import open_file

_ENDINGS = (".gz", ".zst")
_CHUNK = 1 << 20
_URL_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


class CutOff(Exception):
    """A file that ends in the middle of something; `str()` says where."""


def open_stream(path: str) -> IO[bytes]:
    """Opens a file for reading its bytes, decompressed by its ending (.gz, .zst). Raises OSError, and `DataError` without zstandard."""
    file = open_file(path)
    if path.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=file))  # type: ignore[arg-type]
    if path.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{path}: found no package zstandard, expected it; install requirements-prepare.txt") from None
        return io.BufferedReader(_ZstdFile(file, zstandard.ZstdDecompressor(), zstandard.ZstdError), _CHUNK)
    return file


def stem(path: str) -> str:
    """Returns a file's name without its last endings: "train/00.jsonl.zst" -> "00"."""
    name = path.rpartition("/")[2]
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name.rpartition(".")[0] or name


def lines(path: str, *, first: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yields (number, line) without the line feed; nothing else ends a line.

    first, end: bytes of an uncompressed file: the lines that begin in [first, end), numbered from 0 there. Raises `CutOff` after the last
    whole line of a compressed file that ends in the middle, OSError when it cannot be read.
    """
    with open_stream(path) as file:
        place = first
        if first:
            file.seek(first - 1)
            place = first - 1 + len(file.readline())  # the line that began before belongs to the part before
        number = 0
        while end is None or place < end:
            try:
                line = file.readline()
            except (EOFError, zlib.error) as error:
                raise CutOff(f"a compressed file that ends after line {number} ({error})") from error
            if not line:
                return
            place += len(line)
            yield number, line.removesuffix(b"\n")
            number += 1


class _ZstdFile(io.RawIOBase):
    """The bytes of a zstandard file. The package's own reader ends quietly where a frame is cut off; this one raises EOFError."""

    def __init__(self, file: IO[bytes], decompressor: Any, error: type[Exception]):
        self._file, self._decompressor, self._error = file, decompressor, error
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            data = data or self._file.read(_CHUNK)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the last frame is not whole")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            try:
                self._ready = self._frame.decompress(data)
            except self._error as error:
                raise EOFError(str(error)) from error
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def from_base64(text: bytes) -> bytes:
    """Returns the bytes that base64 writes, in the standard alphabet or that of URLs, with or without padding.

    Raises ValueError with what was found and expected.
    """
    standard = text.strip().translate(_URL_TO_STANDARD).rstrip(b"=")
    try:
        return base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"found {len(text)} characters that are no base64 ({error}), expected an encoded picture") from error
