"""Files on local disks and in object stores, by path or by address (gs://, s3://, and whatever else fsspec knows)."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from ofa_jax.config.errors import DataError


def is_remote(path: str) -> bool:
    """Says whether a path is an address of an object store."""
    return "://" in path


def open_file(path: str) -> IO[bytes]:
    """Opens a file for reading bytes. Raises FileNotFoundError and other OSErrors; `DataError` when fsspec is needed and not installed."""
    if not is_remote(path):
        return Path(path).open("rb")
    return _fsspec(path).open(path, "rb")


def list_files(folder: str, pattern: str) -> list[str]:
    """Returns the files below `folder` that match a glob pattern ("*.tar", "images/**/*.jpg"), as paths or addresses, sorted."""
    if not is_remote(folder):
        return sorted(str(path) for path in Path(folder).glob(pattern) if path.is_file())
    scheme = folder.partition("://")[0]
    found = _fsspec(folder).glob(f"{folder.rstrip('/')}/{pattern}")
    return sorted(path if is_remote(path) else f"{scheme}://{path.lstrip('/')}" for path in found)


def _fsspec(path: str) -> Any:
    try:
        import fsspec
    except ImportError:
        raise DataError(f"{path}: found no fsspec, expected it for addresses of object stores; install requirements-prepare.txt") from None
    return fsspec.core.url_to_fs(path)[0]


def file_size(path: str) -> int:
    """Returns a file's size in bytes. Raises FileNotFoundError."""
    return int(_fsspec(path).size(path)) if is_remote(path) else Path(path).stat().st_size
