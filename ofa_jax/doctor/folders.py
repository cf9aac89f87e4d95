"""Folders of disks and of object stores: readable, writable, how fast, with how much room. What is written is removed again.

Rates are of one stream: a program that reads or writes several files at a time may be faster.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import AnyRun
from ofa_jax.data.storage import Range, as_path, is_remote, read_bytes, read_ranges
from ofa_jax.data.storing import remove_file, write_bytes
from ofa_jax.doctor.report import Finding
from ofa_jax.parallel import hosts

CHUNK = 4 * 2**20  # bytes that are written or read at a time
MOST_BYTES = 512 * 2**20  # of one measurement
_TIGHT = 1.25  # room for so much more than is needed is enough
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Megabytes (1e6 bytes) a second; None where nothing could be measured."""

    write: float | None
    read: float | None


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it, and removes at the end what it made, unless something lies in it by then. Raises OSError."""
    above = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in above:
            with contextlib.suppress(FileNotFoundError):  # another host made it too, and was first
                try:
                    path.rmdir()
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:
                        raise


def write_and_read(folder: Path, *, seconds: float, most: int = MOST_BYTES) -> Rates:
    """Returns the rates of writing a file in `folder`, to the disk and not to memory alone, and of reading it back. The file is removed.

    seconds: that each may take; most: bytes. A disk that fills up ends it with the OSError that it gave.
    """
    path = folder / f".doctor-{socket.gethostname()}-{os.getpid()}"
    block = os.urandom(CHUNK)
    try:
        began, written = time.monotonic(), 0
        with path.open("wb", buffering=0) as file:
            while written < most and time.monotonic() - began < seconds:
                written += file.write(block)
            os.fsync(file.fileno())
        write = written / 1e6 / (time.monotonic() - began)
        return Rates(write, read_rate([path], seconds=seconds))
    finally:
        path.unlink(missing_ok=True)


def read_rate(paths: list[Path], *, seconds: float) -> float:
    """Returns megabytes a second of reading local files, one after another, for at most `seconds`. Pages that the system keeps of them are
    given up first, so that the disk is asked; file systems in memory have none to give up. Raises OSError."""
    began, read = time.monotonic(), 0
    block = bytearray(CHUNK)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while count := file.readinto(block):
                read += count
                if time.monotonic() - began > seconds or read >= MOST_BYTES:
                    break
        if time.monotonic() - began > seconds or read >= MOST_BYTES:
            break
    return read / 1e6 / max(time.monotonic() - began, 1e-6)


def write_and_read_store(address: str, *, seconds: float, most: int = MOST_BYTES) -> Rates:
    """Returns the rates of writing objects below an address and of reading them, as `write_and_read`. The objects are removed.

    Raises `StoreError`, `DataError`: one sentence each.
    """
    stem = f"{address.rstrip('/')}/.doctor-{socket.gethostname()}-{os.getpid()}"
    block = os.urandom(CHUNK)
    written: list[str] = []
    try:
        began = time.monotonic()
        while len(written) * CHUNK < most and (not written or time.monotonic() - began < seconds):
            written.append(f"{stem}-{len(written)}")
            write_bytes(as_path(written[-1]), block)
        write = len(written) * CHUNK / 1e6 / (time.monotonic() - began)
        began, read = time.monotonic(), 0
        for name in written:
            read += len(read_bytes(name))
            if time.monotonic() - began > seconds:
                break
        return Rates(write, read / 1e6 / (time.monotonic() - began))
    finally:
        for name in written:
            remove_file(as_path(name))


def store_read_rate(files: list[tuple[str, int]], *, seconds: float) -> float:
    """Returns megabytes a second of reading objects by ranges that are asked for together, as training does. files: (address, bytes).

    Raises `StoreError`, FileNotFoundError.
    """
    began, read = time.monotonic(), 0
    for address, size in files:
        ranges = [Range(address, start, min(start + CHUNK, size)) for start in range(0, min(size, 16 * CHUNK), CHUNK)]
        read += sum(map(len, read_ranges(ranges)))
        if time.monotonic() - began > seconds or read >= MOST_BYTES:
            break
    return read / 1e6 / max(time.monotonic() - began, 1e-6)


def check_data_folder(config: AnyRun, files: list[tuple[str, int]], *, seconds: float) -> list[Finding]:
    """Returns whether the data folder can be read, and how fast. files: (path or address, bytes) of shards that the run reads.

    Whether it can be written is said, but is no fault: training does not write there. Raises OSError, `UserError` for what cannot be read.
    """
    if not files:
        return [Finding("data", "FAIL", f"{config.data.dir}: found no shard to read", advice="see what is said of datasets")]
    remote = is_remote(config.data.dir)
    rate = store_read_rate(files, seconds=seconds) if remote else read_rate([Path(path) for path, _ in files], seconds=seconds)
    try:
        if remote:
            written = write_and_read_store(config.data.dir, seconds=seconds, most=4 * CHUNK).write
        else:
            written = write_and_read(Path(config.data.dir), seconds=seconds, most=4 * CHUNK).write
        said = f"written at {written:.0f} MB/s"
    except (OSError, ConfigError) as error:
        written, said = None, f"not writable ({getattr(error, 'strerror', None) or error}), which training does not need"
    numbers: dict[str, float | int | str | None] = {"read_mb_s": rate, "write_mb_s": written}
    return [Finding("data", "ok", f"{config.data.dir}: shards are read at {rate:.0f} MB/s; {said}", numbers=numbers, measure=rate)]


def check_workdir(config: AnyRun, *, checkpoint_bytes: int, seconds: float) -> list[Finding]:
    """Returns whether this host can write and read the run's folder, how fast, and whether all hosts have the same folder there. All hosts
    must call it, and none of them raises."""
    text = config.workdir.replace("{name}", config.name)
    if is_remote(text):
        found = f"workdir: found the address {text}"
        advice = "mount the bucket, or copy checkpoints there yourself; data.dir may be an address"
        return [Finding("workdir", "FAIL", found, "a folder of a disk that all hosts share, which checkpoints are written to", advice)]
    folder = Path(text)
    finding: Finding
    shared: list[Finding] = []
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(made_folder(folder))
            rates = write_and_read(folder, seconds=seconds)
            finding = _workdir_rates(config, folder, rates, checkpoint_bytes)
        except OSError as error:
            finding = _refused(folder, error)
        shared = _check_shared(folder)
    return [finding, *shared]


def _workdir_rates(config: AnyRun, folder: Path, rates: Rates, checkpoint_bytes: int) -> Finding:
    assert rates.write is not None and rates.read is not None
    save_s = checkpoint_bytes / hosts.count() / 1e6 / rates.write
    numbers: dict[str, float | int | str | None] = {"write_mb_s": rates.write, "read_mb_s": rates.read, "save_s": save_s}
    said = f"{folder}: written at {rates.write:.0f} MB/s, read at {rates.read:.0f} MB/s; a save takes some {save_s:.1f} s"
    plan = config.checkpoint
    if save_s > plan.deadline_s:
        advice = "take a faster disk, or a longer deadline"
        return Finding("workdir", "WARN", said, f"at most checkpoint.deadline_s={plan.deadline_s:g}", advice, numbers, rates.write)
    if plan.every_s and save_s > plan.every_s:
        advice = "take a faster disk, or save less often"
        return Finding("workdir", "WARN", said, f"at most checkpoint.every_s={plan.every_s:g}", advice, numbers, rates.write)
    return Finding("workdir", "ok", said, numbers=numbers, measure=rates.write)


def _refused(folder: Path, error: OSError) -> Finding:
    where = error.filename or folder
    if error.errno in _FULL:
        free = shutil.disk_usage(existing_part(folder)).free
        advice = "make room, or name another folder with --config.workdir"
        return Finding("workdir", "FAIL", f"{folder}: the disk is full ({free / 1e6:.0f} MB free)", "room for checkpoints", advice)
    return Finding("workdir", "FAIL", f"{where}: {error.strerror}", "a folder to write to", "name another one with --config.workdir")


def existing_part(folder: Path) -> Path:
    """Returns the folder, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _check_shared(folder: Path) -> list[Finding]:
    """Whether a file that the first host writes is seen by the others. Hosts that cannot write or look say so elsewhere."""
    if hosts.count() == 1:
        return []
    token = folder / ".doctor-shared"
    content = f"{socket.gethostname()} {os.getpid()} {time.time()}"
    problem = ""
    if hosts.is_first():
        try:
            token.write_text(content, encoding="utf-8")
        except OSError as error:
            problem = f"{token}: {error.strerror}"
    content, problem = hosts.gather(content.encode())[0].decode(), hosts.gather(problem.encode())[0].decode()
    seen = False
    if not problem and not hosts.is_first():
        try:
            seen = token.read_text(encoding="utf-8") == content
        except OSError:
            seen = False  # not there: that is the answer
    hosts.gather(b"looked")
    if hosts.is_first() and not problem:
        token.unlink(missing_ok=True)
    if problem or hosts.is_first() or seen:
        return []
    found = f"{folder.absolute()}: a file that host 0 wrote is not seen on host {hosts.index()}"
    return [Finding("workdir", "FAIL", found, "one folder that all hosts share", "name such a one with --config.workdir")]


def check_room(config: AnyRun, *, checkpoint_bytes: int) -> list[Finding]:
    """Returns whether the disk of the run's folder has room for the checkpoints that stay and one under way, less what is there already.

    checkpoint_bytes: of one. Raises OSError.
    """
    text = config.workdir.replace("{name}", config.name)
    if is_remote(text):
        return [Finding("disk", "WARN", "not checked: workdir is an address")]
    folder, plan = Path(text), config.checkpoint
    for_ever = config.steps // plan.keep_every if plan.keep_every else 0
    count = plan.keep + plan.keep_best + for_ever + 1
    there = _size(folder / "checkpoints")
    needed = max(count * checkpoint_bytes - there, 0)
    free = shutil.disk_usage(existing_part(folder)).free
    numbers: dict[str, float | int | str | None] = {"free_bytes": free, "needed_bytes": needed, "checkpoint_bytes": checkpoint_bytes}
    has = f", {_size_text(there)} of them are there" if there else ""
    said = f"{_size_text(free)} free; {count} checkpoints of {_size_text(checkpoint_bytes)} (one under way){has}"
    if free < needed:
        advice = "make room, or keep fewer: checkpoint.keep, checkpoint.keep_every, checkpoint.keep_best"
        return [Finding("disk", "FAIL", said, f"{_size_text(needed)} free", advice, numbers, free)]
    if free < _TIGHT * needed:
        return [Finding("disk", "WARN", said, f"{_size_text(int(_TIGHT * needed))} free", "logs need room too", numbers, free)]
    return [Finding("disk", "ok", said, numbers=numbers, measure=free)]


def _size(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a run that is alive replaces its checkpoints
            total += path.stat().st_size if path.is_file() else 0
    return total


def _size_text(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
