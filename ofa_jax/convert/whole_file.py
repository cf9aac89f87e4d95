"""Files as one piece: mapped into memory to be read, moved into place to be written, so that half a file never counts."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ofa_jax.config.errors import ConvertError

# What Python's zipfile raises on damaged archives beside BadZipFile: for sizes, offsets and names that cannot be, and unknown versions.
ZIP_FAULTS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OverflowError, EOFError, OSError)

# What often lies where a file of weights is expected, by its first bytes in lower case.
_MISTAKEN = {
    b"version https://git-lfs": "a Git LFS pointer, expected a file of weights: fetch it with `git lfs pull`",
    b"<!doctype": "a web page, expected a file of weights: download it again",
    b"<html": "a web page, expected a file of weights: download it again",
}


def map_file(path: Path) -> mmap.mmap:
    """Returns the read-only mapping of a file's bytes; pages are read when they are touched, and the mapping lives as long as its views.

    Raises `ConvertError` when the file is missing, a folder, empty, or evidently no file of weights (a Git LFS pointer, a web page).
    The file must not be cut while the mapping is used; replacing it by a renamed one, as `written_whole` does, is safe.
    """
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ConvertError(f"{path} is empty, expected a file of weights: download or write it again")
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ConvertError(f"{path} cannot be read ({error.strerror or error}), expected a file of weights") from error
    for start, found in _MISTAKEN.items():
        if mapping[: len(start)].lower() == start:
            raise ConvertError(f"{path} is {found}")
    return mapping


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yields a name in the folder of `path` to write to, and renames that file to `path` once the body is done and the bytes are on disk.

    When the body raises, the half-written file is removed and an older `path` stays as it was. A fault of the disk is a `ConvertError`.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ConvertError(f"{path} cannot be written ({error.strerror or error}), expected a writable folder with enough space") from error
    finally:
        with contextlib.suppress(OSError):  # it is gone, or its folder never was there
            partial.unlink()


@contextlib.contextmanager
def new_place(out: Path, *, folder: bool) -> Iterator[Path]:
    """Yields a folder or file under a temporary name beside `out`, which becomes `out` at the end: what is cut off never counts.

    Raises `ConvertError` when `out` is there already.
    """
    if out.exists():
        raise ConvertError(f"{out}: found it there already, expected a new name; nothing was written")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        new = beside / out.name
        if folder:
            new.mkdir()
        yield new
        os.replace(new, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def zip_records(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Returns the records of the zip file `path` by name, in the order of its directory.

    Raises `ConvertError` when the directory is damaged or cut off, names a record twice, or names one that leads out of the archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except ZIP_FAULTS as error:
        raise ConvertError(f"{path} is a zip file that is cut off or damaged ({error}): download or write it again") from error
    records = {info.filename: info for info in infos}
    for info in infos:
        if records[info.filename] is not info:
            raise ConvertError(f"{path} has two records named {info.filename!r}, expected every name once: which one counts is not told")
        if info.filename.startswith("/") or ".." in info.filename.split("/"):
            raise ConvertError(f"{path} has a record named {info.filename!r}, expected names inside the archive: do not trust this file")
    return records
