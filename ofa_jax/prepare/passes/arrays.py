"""Arrays in files, each of which appears in one move: two writers of the same file do not disturb each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file."""
    _save(path, lambda file: np.save(file, array))


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz file."""
    _save(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _save(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        write(file)
    os.replace(partial, path)


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Returns the named arrays of an .npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in names}


def join_ids(ids: Sequence[str]) -> np.ndarray:
    """Returns record ids as one array of bytes, uint8 [n]: one a line (an id has no line break, `Layout` promises it)."""
    return np.frombuffer("\n".join(ids).encode(), np.uint8)


def split_ids(joined: np.ndarray) -> list[str]:
    """Returns the ids that `join_ids` joined."""
    text = bytes(joined).decode()
    return text.split("\n") if text else []


def ids_of(path: Path) -> list[str]:
    """Returns the record ids of an input's index, in order."""
    return split_ids(load_arrays(path, "ids")["ids"])
