"""Arrays in files, on a disk or in a store, each of which appears whole."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ofa_jax.data.storage import is_remote, read_bytes
from ofa_jax.data.storing import written_whole


def save_array(path: Any, array: np.ndarray) -> None:
    """Writes an .npy file."""
    with written_whole(path) as local, local.open("wb") as file:
        np.save(file, array)


def save_arrays(path: Any, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz file."""
    with written_whole(path) as local, local.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_array(path: Any) -> np.ndarray:
    """Returns the array of an .npy file."""
    return np.load(_readable(path))


def load_arrays(path: Any, *names: str) -> dict[str, np.ndarray]:
    """Returns the named arrays of an .npz file."""
    with np.load(_readable(path)) as file:
        return {name: file[name] for name in names}


def _readable(path: Any) -> Any:
    return io.BytesIO(read_bytes(path)) if is_remote(path) else path


def join_ids(ids: Sequence[str]) -> np.ndarray:
    """Returns record ids as one array of bytes, uint8 [n]: one a line (an id has no line break, `Layout` promises it)."""
    return np.frombuffer("\n".join(ids).encode(), np.uint8)


def split_ids(joined: np.ndarray) -> list[str]:
    """Returns the ids that `join_ids` joined."""
    text = bytes(joined).decode()
    return text.split("\n") if text else []


def ids_of(path: Any) -> list[str]:
    """Returns the record ids of an input's index, in order."""
    return split_ids(load_arrays(path, "ids")["ids"])
