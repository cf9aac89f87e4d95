"""Files are written whole, to local disks and to object stores: readers see all of a file or none of it.

On a disk a file gets its name in one move. An object appears when its last byte has come, so it needs no other name; what is larger than
memory should hold is written to a local temporary file first and sent in one piece. Questions to a store are those of `data.storage`.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import (
    LISTING_S,
    SLOWEST_BYTES_S,
    _ask,
    _file_system,
    _inner,
    _Job,
    _job,
    _results,
    is_remote,
    list_folder,
)

PARTIAL = ".partial"  # ends the names of files on a disk that are being written; they begin with a dot
_AT_ONCE = 16  # files of a store that are read or written together
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def written_whole(path: Any) -> Iterator[Path]:
    """Yields a local file to write, which becomes `path` (`storage.as_path`) when the block ends without an error.

    Raises OSError, `storage.StoreError`.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="ofa_jax-") as folder:
            local = Path(folder) / path.name
            yield local
            _send([(local, os.fspath(path))])
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")  # two writers of the same file do not disturb each other
    yield partial
    os.replace(partial, path)


def write_bytes(path: Any, data: bytes) -> None:
    """Writes a small file. Raises OSError, `storage.StoreError`."""
    if is_remote(path):
        address = os.fspath(path)
        with _named_bucket(address):
            _ask(address, "pipe_file", _inner(address), data, extra_s=len(data) / SLOWEST_BYTES_S)
        return
    with written_whole(path) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def written_folder(folder: Any) -> Iterator[Path]:
    """Yields an empty local folder to fill, which becomes `folder` when the block ends without an error; what was there is replaced.

    In a store the files appear one by one: write a note after them, and take the folder for finished when the note is there.
    """
    if not is_remote(folder):
        partial = folder.with_name(f".{folder.name}{PARTIAL}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
        return
    with tempfile.TemporaryDirectory(prefix="ofa_jax-") as name:
        yield Path(name)
        remove_folder(folder)
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        _send([(path, f"{os.fspath(folder).rstrip('/')}/{path.relative_to(name).as_posix()}") for path in files])


def _send(files: list[tuple[Path, str]]) -> None:
    if not files:
        return
    jobs = [
        _job(address, "put_file", str(local), _inner(address), extra_s=local.stat().st_size / SLOWEST_BYTES_S, patient=True)
        for local, address in files
    ]
    with _named_bucket(files[0][1]):
        _results(jobs)


@contextlib.contextmanager
def _named_bucket(address: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        bucket = "/".join(address.split("/")[:3])
        raise DataError(f"{address}: found no {bucket} to write to, expected a bucket that is there; make it first") from error


def names_in(folder: Any) -> set[str]:
    """Returns the names of what lies in a folder itself, none when there is no such folder: one listing. Raises OSError, `StoreError`."""
    return set(list_folder(folder, patient=True) or ())


def remove_file(path: Any) -> None:
    """Removes a file that may be there. Raises OSError, `StoreError`."""
    if is_remote(path):
        _results([_removal(os.fspath(path))])
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Any, *, last: str = "") -> None:
    """Removes a folder that may be there with all that is in it; the file `last` (a path below it) goes after all others.

    Raises OSError, `StoreError`.
    """
    if is_remote(folder):
        address = os.fspath(folder).rstrip("/")
        scheme = address.partition("://")[0]
        found = [f"{scheme}://{name}" for name in _ask(address, "find", _inner(address), extra_s=LISTING_S, patient=True)]
        kept = f"{address}/{last}"
        _results([_removal(name) for name in found if name != kept])
        _results([_removal(name) for name in found if name == kept])
        return
    if not folder.exists():
        return
    kept = folder / last
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            if Path(parent, name) != kept or not last:
                os.unlink(os.path.join(parent, name))
        for name in folders:
            path = Path(parent, name)
            if path.is_symlink():
                path.unlink()
            elif not (last and path in kept.parents):
                path.rmdir()
    shutil.rmtree(folder)


def _removal(address: str) -> _Job:
    """A question that removes an object; one that is gone is removed: the answer to an earlier try may have been lost."""
    job = _job(address, "rm_file", _inner(address))
    if not _file_system(address).async_impl:
        return job

    async def begin() -> None:
        with contextlib.suppress(FileNotFoundError):
            await job.begin()

    return job._replace(begin=begin)


def in_order(function: Callable[[Item], Result], items: Iterable[Item], *, remote: bool) -> Iterator[Result]:
    """Yields function(item) for each item in order; where files are in a store, several are under way together, a few ahead."""
    if not remote:
        yield from map(function, items)
        return
    ahead: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) >= 2 * _AT_ONCE:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
