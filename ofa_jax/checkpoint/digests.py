"""Digests of a checkpoint's files, written before it is committed and compared before it is read.

Orbax's files have checksums on the nodes of their index only: a flipped bit in an array would be read as another number. SHA-256 is as
fast as a disk (about 1 GB/s on a core), and makes the list of digests a name of the checkpoint's contents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

DIGESTS_FILE = "digests.json"
_THREADS = 4
# Written after the list of digests, or changed when the checkpoint is committed. What matters in the second has a digest of its own.
_LATER = (DIGESTS_FILE, "commit_success.txt", "_CHECKPOINT_METADATA")


def write_digests(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes `digests.json` for every file below `folder`, and for the metadata `about`, which Orbax keeps in a file of its own."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name not in _LATER]
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(lambda name: _digest(folder / name), names))
    files = {name: [(folder / name).stat().st_size, digest] for name, digest in zip(names, digests, strict=True)}
    text = json.dumps({"about": about_digest(about), "files": files}, indent=1) + "\n"
    with (folder / DIGESTS_FILE).open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def about_digest(about: Mapping[str, Any]) -> str:
    """Returns the digest of a checkpoint's metadata, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def find_damage(folder: Path, about: Mapping[str, Any], *, parts: Iterable[str] | None = None, share: tuple[int, int] = (0, 1)) -> str:
    """Returns what is wrong with a checkpoint that has digests, as the part of a sentence; an empty text when nothing is.

    parts: only the folders of these parts. share: (i, n) reads every n-th file from the i-th on, where n processes look together.
    """
    try:
        listed = json.loads((folder / DIGESTS_FILE).read_text())
        files, expected = dict(listed["files"]), listed["about"]
    except FileNotFoundError:
        return f"found no {DIGESTS_FILE}, expected the list of its files"
    except (ValueError, KeyError, TypeError) as error:
        return f"{DIGESTS_FILE} cannot be read: {error}"
    if about_digest(about) != expected:
        return "its metadata (config, data, versions) is not what was saved"
    wanted = None if parts is None else tuple(f"{part}/" for part in parts)
    names = [name for name in sorted(files, key=lambda name: (-int(files[name][0]), name)) if wanted is None or name.startswith(wanted)]
    for name in names:
        path = folder / name
        if not path.is_file():
            return f"{name}: found no file, expected {files[name][0]} bytes"
        if path.stat().st_size != files[name][0]:
            return f"{name}: found {path.stat().st_size} bytes, expected {files[name][0]}"
    with ThreadPoolExecutor(_THREADS) as pool:
        mine = names[share[0] :: share[1]]
        for name, digest in zip(mine, pool.map(lambda name: _digest(folder / name), mine), strict=True):
            if digest != files[name][1]:
                return f"{name}: found the digest {digest[:12]}..., expected {files[name][1][:12]}...: its bytes changed after it was saved"
    return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
