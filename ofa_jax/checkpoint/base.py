"""Checkpoints that hold only what is trained: what such a one leaves to another checkpoint, its base, and how that is found again.

A base is known by the digest of its list of digests, which stands for every byte of it: wherever it lies, and whoever copied it, the same
digest is the same checkpoint, and no other is taken for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofa_jax.checkpoint.digests import DIGESTS_FILE
from ofa_jax.checkpoint.folders import COMMIT_MARKER, find_run
from ofa_jax.checkpoint.trees import from_paths, walk
from ofa_jax.config.errors import CheckpointError

_OF_PARAMS = ("params", "ema")  # parts that have an array for every parameter, or for every one that is saved
_SHOWN = 12  # digits of a digest in a sentence


@dataclasses.dataclass(frozen=True)
class Base:
    """The checkpoint that another one lies over, and what that one leaves to it."""

    path: str  # its run's folder, when the other was saved
    step: int
    digest: str  # SHA-256 of its list of digests
    params: tuple[str, ...]  # paths of the parameters that stay as they are there, their averages too: `encoder/layers/ffn/up/kernel`
    stats: bool  # whether the running statistics do

    def __str__(self) -> str:
        return f"step {self.step} of {self.path} (digest {self.digest[:_SHOWN]})"


def digest_of(checkpoint: Path) -> str:
    """Returns the digest that stands for a complete checkpoint, or an empty text where it has no list of digests (format 1)."""
    path = checkpoint / DIGESTS_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def kept(parts: dict[str, Any], base: Base | None) -> dict[str, Any]:
    """Returns of a state by parts what its own checkpoint holds: all of it where there is no base."""
    return parts if base is None else _chosen(parts, base, left=False)


def left(parts: dict[str, Any], base: Base) -> dict[str, Any]:
    """Returns of a state by parts what lies in the base."""
    return _chosen(parts, base, left=True)


def laid_over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Returns the leaves of both as nested dicts by part; where both have one, that of `over`."""
    return from_paths({tuple(name.split("/")): leaf for name, leaf in (walk(under) | walk(over)).items()})


def find_base(base: Base, places: Sequence[str], *, where: str) -> tuple[Path, int]:
    """Returns (the folder of a run, the step) of the first of `places` (as `find_run` takes them) where `base` lies.

    where: the checkpoint that lies over it, for the sentence. Raises `CheckpointError` that says what was found instead at each place.
    """
    looked: dict[Path, str] = {}
    for place in filter(None, places):
        folder, named = find_run(place)
        step = base.step if named is None else named
        checkpoint = folder.absolute() / "checkpoints" / str(step)
        if checkpoint in looked:
            continue
        if not (checkpoint / COMMIT_MARKER).exists():
            looked[checkpoint] = f"no complete checkpoint at {checkpoint}"
        elif (digest := digest_of(checkpoint)) != base.digest:
            said = f"of digest {digest[:_SHOWN]}" if digest else f"without {DIGESTS_FILE}"
            looked[checkpoint] = f"another one at {checkpoint}, {said}"
        else:
            return folder.absolute(), step
    found = "; ".join(looked.values()) or "no place to look at"
    raise CheckpointError(
        f"{where} holds only what was trained, over {base}: found {found}, expected that very checkpoint; if it was moved, "
        "--config.init.checkpoint=PLACE says where it is now (its run's folder or the checkpoint's own)"
    )


def _chosen(parts: dict[str, Any], base: Base, *, left: bool) -> dict[str, Any]:
    names = {f"{part}/{name}" for part in _OF_PARAMS for name in base.params}

    def is_left(name: str) -> bool:
        return name in names or (base.stats and name.startswith("stats/"))

    return from_paths({tuple(name.split("/")): leaf for name, leaf in walk(parts).items() if is_left(name) == left})
