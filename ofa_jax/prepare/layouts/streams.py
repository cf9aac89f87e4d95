"""What layouts of many shard files share: lines of texts that may be compressed, members of tars, base64, names of inputs.

Formats: https://www.rfc-editor.org/rfc/rfc8878 (zstd), rfc1952 (gzip), rfc4648 (base64, both alphabets), and POSIX's tar. A file that was
cut or damaged gives all that is whole before the place, then raises `Damaged`: Python's own readers take some cut files for whole ones.
"""

from __future__ import annotations

import base64
import binascii
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import RecordError
from ofa_jax.data.storage import is_remote, open_file
from ofa_jax.prepare.layouts.base import Input, Layout

COMPRESSED = (".gz", ".zst")
_BLOCK = 1 << 17  # bytes read at a time; of compressed text, which grows about tenfold


class Damaged(ValueError):
    """A file that cannot be read to its end. `str()` says what was found, and where."""


def record_error(layout: Layout, record: str, *, field: str, found: str, expected: str, reason: str = "schema") -> RecordError:
    """Returns the error of one record of a layout, for a place where it is yielded and not raised (`Layout.fail`)."""
    return RecordError(dataset=layout.dataset, record=record, reason=reason, field=field, found=found, expected=expected)


def file_error(layout: Layout, item: Input, found: str, *, last: str = "") -> RecordError:
    """Returns the error of a whole file; `last` is the record that was being read, where it is known."""
    return record_error(layout, last or item.name, field="(file)", found=found, expected=f"{item.path} whole")


def relative_path(source: str, path: str) -> str:
    """Returns the path of a file of a layout below its source, with "/" between the parts."""
    if is_remote(path):
        return path.removeprefix(source.rstrip("/")).lstrip("/")
    return os.path.relpath(path, source).replace(os.sep, "/")


def file_inputs(layout: Layout, paths: Sequence[str], *, split: str, endings: Sequence[str] = ()) -> list[Input]:
    """Returns one input a path, named after its place below the source, without an ending of `endings`: "a/b.tar" is "a_b".

    Raises `DataError` when two files come to the same name.
    """
    inputs: dict[str, Input] = {}
    for path in paths:
        name = relative_path(layout.source, path)
        ending = next((ending for ending in endings if name.lower().endswith(ending)), "")
        name = name[: len(name) - len(ending)].replace("/", "_")
        if name in inputs:
            raise DataError(f"{layout.dataset}: found {inputs[name].path} and {path}, both of the name {name}, expected different names")
        inputs[name] = Input(name, split, path)
    return list(inputs.values())


# -------------------------------------------------------------------------------------------------------------------- lines of texts


def text_lines(path: str, *, span: tuple[int, int] | None = None) -> Iterator[tuple[int, bytes]]:
    """Yields (first byte, line) of a file, ".gz" and ".zst" decompressed. Only a line feed ends a line; it is left out.

    span: only the lines that begin in these bytes, of a file that is not compressed. Raises `Damaged` after the last whole line of a
    compressed file that was cut, OSError, and `DataError` when a package is missing.
    """
    with open_file(path) as file:
        if path.endswith(COMPRESSED):
            yield from _split_lines(_decompressed(file, _zlib_decoder if path.endswith(".gz") else _zstd_decoder(path)))
            return
        begin, end = span or (0, None)
        if begin:
            file.seek(begin - 1)  # the line that holds the byte before belongs to the range before; mostly it goes on into this one
            begin += len(file.readline()) - 1
        while (end is None or begin < end) and (line := file.readline()):
            yield begin, line.removesuffix(b"\n")
            begin += len(line)


def spans(path: str, *, size: int) -> list[tuple[int, int]]:
    """Returns ranges of about `size` bytes that cover a file; one empty range for an empty file."""
    with open_file(path) as file:
        total = file.seek(0, os.SEEK_END)
        if total is None:  # a file object of fsspec that does not say where it went
            total = file.tell()
    parts = max(1, -(-total // size))
    return [(total * part // parts, total * (part + 1) // parts) for part in range(parts)]


def _split_lines(blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    begin = 0
    held: list[bytes] = []  # parts of a line that goes over several blocks
    for block in blocks:
        *whole, rest = block.split(b"\n")
        for part in whole:
            line = b"".join([*held, part])
            held.clear()
            yield begin, line
            begin += len(line) + 1
        if rest:
            held.append(rest)
    if held:
        yield begin, b"".join(held)


def _decompressed(file: IO[bytes], new_decoder: Callable[[], tuple[Any, type[Exception]]]) -> Iterator[bytes]:
    """Yields the text of a compressed file block by block; it may be several frames, one after another."""
    decoder, place = None, 0
    while block := file.read(_BLOCK):
        place += len(block)
        while block:
            if decoder is None:
                block = block.lstrip(b"\0")  # padding between frames
                if not block:
                    break
                decoder, fault = new_decoder()
            try:
                text = decoder.decompress(block)
            except fault as error:
                raise Damaged(f"compressed bytes that do not decode before byte {place} ({error})") from error
            yield text
            block = decoder.unused_data if decoder.eof else b""
            if decoder.eof:
                decoder = None
    if decoder is not None:
        raise Damaged(f"a compressed file that is cut at byte {place}")


def _zlib_decoder() -> tuple[Any, type[Exception]]:
    """Returns a decoder of one gzip member and the exception that it raises."""
    return zlib.decompressobj(wbits=31), zlib.error


def _zstd_decoder(path: str) -> Callable[[], tuple[Any, type[Exception]]]:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path}: found no zstandard, expected it for .zst files; install requirements-prepare.txt") from None
    # The Pile's files were written with windows of up to 2 GB ("--long").
    return lambda: (zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(), zstandard.ZstdError)


# -------------------------------------------------------------------------------------------------------------------- members of tars


class _StrictTarInfo(tarfile.TarInfo):
    """Python's reader takes a header that is missing, cut or damaged for the regular end of an archive, unless it is the first one."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tar)  # type: ignore[return-value]
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} where the next member or the end mark should be") from error


def tar_members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the files in a tar, in its order. Raises `Damaged` after the last whole one when the tar was cut."""
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictTarInfo, encoding="utf-8", errors="backslashreplace") as tar:
            for member in tar:
                if member.isfile():
                    opened = tar.extractfile(member)
                    assert opened is not None, member.name
                    content = opened.read()
                    end = member.offset_data + member.size
                    yield member.name, content
    except (tarfile.TarError, EOFError) as error:
        raise Damaged(f"a tar that is cut or damaged after byte {end} ({error})") from error


# -------------------------------------------------------------------------------------------------------------------------- base64

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def from_base64(text: str | bytes) -> bytes:
    """Returns what base64 in either alphabet ("+/" or "-_") stands for; padding may be missing. Raises ValueError with what was found
    and expected."""
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    standard = raw.strip().rstrip(b"=").translate(_TO_STANDARD)
    try:
        return base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"found {len(raw)} characters starting with {raw[:12].decode('latin-1')!r} ({error}), expected base64") from error
