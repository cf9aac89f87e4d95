"""Files on local disks and in object stores, by path or by address (gs://, s3://, and whatever else fsspec knows).

What is asked of a store has a deadline and is tried again, after growing waits, where the fault may pass by itself: no answer, an answer
of 408, 429 or 500 and more, a connection that broke. What does not pass (no right to read, no such object) is told at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from etils import epath

from ofa_jax.config.errors import DataError

TRIES = 8  # of one question to a store: some 50 seconds of errors are outlasted, and three minutes of silence
DEADLINE_S = 10.0  # of the first try; all others have twice as long
WAIT_S = 0.5  # before the second try, more or less by half, so that hosts do not come back together; doubles with every further one
LONGEST_WAIT_S = 16.0
SLOWEST_BYTES_S = 2**20  # a read may take so much longer than its deadline that it comes this fast
AT_ONCE = 64  # questions of one call that are under way together
LISTING_S = 300.0  # a listing may take so much longer than its deadline: it comes by pages of a thousand names, and silence ends it sooner
COPY_BYTES = 8 * 2**20  # a file is copied in reads of this size

_SCHEMES = ("gs://", "s3://", "az://", "hf://")  # those that epath knows
_REQUIREMENTS = "requirements-stores.txt"
_PASSING_STATUS = {408, 429}  # and those from 500 on
# The clients' errors that are no OSError come from these packages; those of names below do not pass by waiting.
_CLIENTS = {"aiohttp", "requests", "urllib3", "google", "gcsfs", "botocore", "aiobotocore", "azure", "fsspec"}
_LASTING_ERRORS = {"DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError", "NonRetryableError", "InvalidURL"}


class StoreError(DataError, OSError):
    """A store that cannot be read: it was asked as often as makes sense, so nobody need try again. `str()` is one sentence."""


class Range(NamedTuple):
    """Bytes `start` to `stop` (exclusive) of a file."""

    path: str
    start: int
    stop: int


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Says whether a path is an address of an object store."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike[str]) -> Any:
    """Returns a path of pathlib's interface, for its names and for `/`: a Path, or an epath.Path for an address.

    Raises `DataError` for an address of a kind that epath does not know.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return Path(text)
    if not text.startswith(_SCHEMES):
        raise DataError(f"{text}: found an address of unknown kind, expected {', '.join(_SCHEMES)} or a local path")
    return epath.Path(text)


# ----------------------------------------------------------------------------------------------------------------- questions


def exists(path: str | os.PathLike[str]) -> bool:
    """Says whether a file or folder is there. Raises `StoreError`."""
    return _info(os.fspath(path)) is not None if is_remote(path) else os.path.exists(path)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Says whether a folder is there; in a store, whether any object's name begins with it. Raises `StoreError`."""
    if not is_remote(path):
        return os.path.isdir(path)
    found = _info(os.fspath(path))
    return found is not None and found["type"] == "directory"


def file_size(path: str | os.PathLike[str]) -> int:
    """Returns a file's size in bytes. Raises FileNotFoundError, `StoreError`."""
    if not is_remote(path):
        return Path(path).stat().st_size
    return int(_file_info(os.fspath(path))["size"])


def list_folder(folder: str | os.PathLike[str], *, patient: bool = False) -> dict[str, int | None] | None:
    """Returns name -> size of the files that lie in a folder itself, None as the size of its folders; None when there is no such folder.

    It is one listing, however many files there are; a `patient` one has its pages tried again one by one, for folders of many thousands.
    Raises `StoreError`, OSError.
    """
    if not is_remote(folder):
        if not os.path.isdir(folder):
            return None
        with os.scandir(folder) as entries:
            return {e.name: None if e.is_dir() else e.stat().st_size for e in entries if e.is_dir() or e.is_file()}
    address = os.fspath(folder).rstrip("/")
    inner = _inner(address)
    try:
        found = _ask(address, "ls", inner, detail=True, extra_s=LISTING_S, patient=patient)
    except FileNotFoundError:
        return None
    sizes: dict[str, int | None] = {}
    for entry in found:
        name = entry["name"].strip("/")
        if name != inner.strip("/"):  # a folder's own mark; of an object of this name, itself
            sizes[name.rpartition("/")[2]] = None if entry["type"] == "directory" else int(entry["size"])
    return sizes or None


def list_files(folder: str, pattern: str) -> list[str]:
    """Returns the files below `folder` that match a glob pattern ("*.tar", "images/**/*.jpg"), as paths or addresses, sorted.

    Raises `StoreError`.
    """
    if not is_remote(folder):
        return sorted(str(path) for path in Path(folder).glob(pattern) if path.is_file())
    scheme = folder.partition("://")[0]
    found = _ask(folder, "glob", f"{_inner(folder).rstrip('/')}/{pattern}", extra_s=LISTING_S)
    return sorted(path if is_remote(path) else f"{scheme}://{path.lstrip('/')}" for path in found)


def open_file(path: str) -> IO[bytes]:
    """Opens a file for reading bytes. Raises FileNotFoundError and other OSErrors; `DataError` when fsspec is needed and not installed."""
    if not is_remote(path):
        return Path(path).open("rb")
    return _file_system(path, patient=True).open(path, "rb")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns what a small file holds. Raises FileNotFoundError, `StoreError`, OSError."""
    if not is_remote(path):
        return Path(path).read_bytes()
    address = os.fspath(path)
    return _ask(address, "cat_file", _inner(address))


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """Returns the bytes of every range, of any number of files; those of a store are read many at once, each tried again by itself.

    Raises FileNotFoundError, `StoreError`, and OSError for a file that ends before its range does.
    """
    out: list[bytes] = [b""] * len(ranges)
    jobs, places = [], []
    for place, (path, start, stop) in enumerate(ranges):
        if not is_remote(path):
            out[place] = _read_local(path, start, stop)
        elif stop > start:
            places.append(place)
            jobs.append(_job(path, "cat_file", _inner(path), start=start, end=stop, extra_s=(stop - start) / SLOWEST_BYTES_S))
    for place, data in zip(places, _results(jobs), strict=True):
        out[place] = data
    for (path, start, stop), data in zip(ranges, out, strict=True):
        if len(data) != max(stop - start, 0):
            raise OSError(f"{path}: found {len(data)} bytes from {start} on, expected {stop - start}: the file is cut off")
    return out


def _read_local(path: str, start: int, stop: int) -> bytes:
    with open(path, "rb") as file:
        return os.pread(file.fileno(), max(stop - start, 0), start)


def local_copy(path: str | os.PathLike[str]) -> Path:
    """Returns a local file with the bytes of `path`: itself, or a copy of an object that is made once and kept for all processes.

    Copies lie in $XDG_CACHE_HOME/ofa_jax (~/.cache/ofa_jax), one of each address; another version of the object replaces it.
    Raises FileNotFoundError, `StoreError`, and `DataError` where nothing can be written there.
    """
    if not is_remote(path):
        return Path(path)
    address = os.fspath(path)
    found = _file_info(address)
    size = int(found["size"])
    version = [address, size] + [str(found.get(name)) for name in ("generation", "etag", "ETag", "md5Hash", "mtime", "LastModified")]
    prefix = hashlib.sha256(address.encode()).hexdigest()[:16]
    name = f"{prefix}-{hashlib.sha256(repr(version).encode()).hexdigest()[:16]}-{address.rpartition('/')[2]}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ofa_jax"
    copy = folder / name
    if copy.exists():
        return copy
    with _held(folder, prefix, address):
        if copy.exists():  # another process made it while this one waited
            return copy
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{prefix}-", delete=False) as file:
            try:
                for start in range(0, size, COPY_BYTES):
                    file.write(read_ranges([Range(address, start, min(start + COPY_BYTES, size))])[0])
                if _file_info(address) != found:
                    raise StoreError(f"{address}: found another version after it was copied, expected it to stay as it is; run it again")
            except BaseException:
                os.unlink(file.name)
                raise
        for old in folder.glob(f"{prefix}-*"):
            old.unlink()  # whoever has it open goes on reading it
        os.replace(file.name, copy)
    return copy


@contextlib.contextmanager
def _held(folder: Path, name: str, address: str) -> Iterator[None]:
    """One process at a time; the lock of a process that dies is free."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / f".{name}.lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DataError(
            f"{folder}: found no place for the copy of {address} ({error.strerror}), expected a folder to write to; "
            f"name one with XDG_CACHE_HOME"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------------------------------ how stores are asked


class _Job(NamedTuple):
    """One question: what errors call it, and what begins to ask it."""

    address: str
    begin: Callable[[], Any]  # gives a coroutine, or for a file system without any the answer
    extra_s: float


def _info(address: str) -> dict[str, Any] | None:
    try:
        return _ask(address, "info", _inner(address))
    except FileNotFoundError:
        return None


def _file_info(address: str) -> dict[str, Any]:
    found = _info(address)
    if found is None or found["type"] != "file":
        raise FileNotFoundError(f"{address}: no such object")
    return found


def _ask(address: str, method: str, *arguments: Any, **named: Any) -> Any:
    return _results([_job(address, method, *arguments, **named)])[0]


def _job(address: str, method: str, *arguments: Any, extra_s: float = 0.0, patient: bool = False, **named: Any) -> _Job:
    """patient: of several requests those that fail are tried again by themselves, where the whole would hardly ever succeed."""
    files = _file_system(address, patient=patient)
    call = getattr(files, f"_{method}" if files.async_impl else method)
    return _Job(address, lambda: call(*arguments, **named), extra_s)


def _results(jobs: Sequence[_Job]) -> list[Any]:
    """Returns the answers to all jobs of one kind of store, `AT_ONCE` together. Raises FileNotFoundError or `StoreError` for the first that
    has none."""
    answers: list[Any] = [None] * len(jobs)
    left = list(range(len(jobs)))
    for attempt in range(TRIES):
        deadline_s = DEADLINE_S * (2 if attempt else 1)
        failed = []
        for place, answer in zip(left, _try([jobs[place] for place in left], deadline_s), strict=True):
            answers[place] = answer
            if isinstance(answer, BaseException):
                _raise_lasting(jobs[place].address, answer)
                failed.append(place)
        if not failed:
            return answers
        left = failed
        if attempt < TRIES - 1:
            time.sleep(min(WAIT_S * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.5, 1.5))
    job = jobs[left[0]]
    last = answers[left[0]]
    said = f"no answer within {deadline_s + job.extra_s:.3g} s" if isinstance(last, TimeoutError) else _said(last)
    raise StoreError(
        f"{job.address}: the store failed {TRIES} times, the last time with: {said}; "
        f"check the network and the state of the store, and run it again"
    ) from last


def _try(jobs: list[_Job], deadline_s: float) -> list[Any]:
    """Returns the answer to each job, or the error that came instead."""
    if not jobs:
        return []
    files = _file_system(jobs[0].address)
    if not files.async_impl:
        return [_answer_or_error(job) for job in jobs]

    async def one(job: _Job, room: asyncio.Semaphore) -> Any:
        async with room:
            return await asyncio.wait_for(job.begin(), deadline_s + job.extra_s)

    async def together() -> list[Any]:
        room = asyncio.Semaphore(AT_ONCE)
        return await asyncio.gather(*(one(job, room) for job in jobs), return_exceptions=True)

    from fsspec.asyn import sync

    # Deadlines above end what waits for the network; this one ends what does not give the loop back, such as looking for an account.
    whole_s = (deadline_s + max(job.extra_s for job in jobs)) * -(-len(jobs) // AT_ONCE) + DEADLINE_S
    try:
        return sync(files.loop, together, timeout=whole_s)
    except TimeoutError as error:
        return [error] * len(jobs)


def _answer_or_error(job: _Job) -> Any:
    try:
        return job.begin()
    except OSError as error:
        return error


def _raise_lasting(address: str, error: BaseException) -> None:
    """Raises what waiting does not mend, as it should be told; returns for the rest."""
    if isinstance(error, FileNotFoundError):
        raise FileNotFoundError(f"{address}: no such object") from error
    code = str(getattr(error, "code", None) or getattr(error, "status", None))
    status = int(code) if code.isdigit() else 0
    if status == 416 or getattr(error, "errno", None) == errno.EINVAL:
        raise OSError(f"{address}: the file ends before the bytes asked for: it is cut off") from error
    package = type(error).__module__.partition(".")[0]
    if status == 401 and "Invalid Credentials" in str(error):
        return  # so gcsfs says that a token could not be renewed just now
    if isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden"):
        what = f"the store refuses it ({_said(error)}); check the name of the bucket, and that the account of this machine may read it"
    elif type(error).__name__ in _LASTING_ERRORS:
        what = f"found no account to read it with ({_said(error)}); sign in, or give this machine an account that may read the bucket"
    elif (400 <= status < 500 and status not in _PASSING_STATUS) or type(error) is ValueError:
        what = f"the store does not take the question ({_said(error)}); check the address"
    elif isinstance(error, OSError) or package in _CLIENTS:
        return
    else:
        raise error  # a fault of the code
    raise StoreError(f"{address}: {what}") from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


def _inner(address: str) -> str:
    """The address as its file system's methods have it."""
    return _file_system(address)._strip_protocol(address)


def _file_system(address: str, *, patient: bool = False) -> Any:
    """The file system of an address; a `patient` one tries again by itself, for those who read it without this module's tries."""
    scheme = address.partition("://")[0]
    try:
        return _file_system_of(scheme, patient, os.getpid())
    except ImportError as error:
        package = error.name.partition(".")[0] if error.name else f"client ({error})"
        raise DataError(f"{address}: found no {package}, expected it for {scheme}://; install {_REQUIREMENTS}") from error
    except ValueError as error:
        raise DataError(f"{address}: found an address of unknown kind ({error}), expected gs:// or s3://") from error


@functools.lru_cache
def _file_system_of(scheme: str, patient: bool, process: int) -> Any:
    """One for each process: connections, and the thread that serves them, do not survive a fork."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}  # nothing is remembered of what a store holds: others write to it
    if scheme not in ("gs", "gcs"):
        return fsspec.filesystem(scheme, **options)
    import aiohttp
    from gcsfs.core import GCSFileSystem

    # Not the class that gcsfs gives for gs://: that one asks by gRPC before each read what kind of bucket it is, again and again where the
    # account may not know that. (It is needed for buckets of the zonal kind alone, which are not read here.)
    class Impatient(GCSFileSystem):
        """Does not try again by itself: half a minute of its tries would hide from us what the store says."""

        _request = GCSFileSystem._request.__wrapped__

    # A connection that is silent for so long is given up.
    options["session_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=DEADLINE_S, sock_read=3 * DEADLINE_S)}
    if os.environ.get("STORAGE_EMULATOR_HOST"):  # an emulator has no accounts
        options["token"] = "anon"
    return (GCSFileSystem if patient else Impatient)(**options)
