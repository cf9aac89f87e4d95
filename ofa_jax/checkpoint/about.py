"""What a checkpoint says of itself beside its arrays: the metadata that is saved with it, by format version.

Format 1 held the resolved config and the tokeniser's digest. Format 2 adds the format's number, the versions of the libraries that wrote
it, the digests of the data, the seed, the metrics of its evaluation, the consents given so far, and the digests of its own files. Format 3
adds the base: the checkpoint that has what this one does not hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ofa_jax import __version__
from ofa_jax.checkpoint.base import Base
from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.render import from_json, to_json
from ofa_jax.config.schema import AnyRun

FORMAT = 3


@dataclasses.dataclass(frozen=True)
class About:
    """The metadata of a checkpoint. What an older format did not say is empty, and named in `unsaid`."""

    config: AnyRun
    identity: dict[str, str]  # facts outside the config: `tokenizer`, and `data/<dataset>` for each dataset
    format: int = FORMAT
    versions: dict[str, str] = dataclasses.field(default_factory=dict)  # of the packages that wrote it
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)  # of the evaluation of this very state; empty: none was made
    consents: tuple[dict[str, Any], ...] = ()  # {"step", "changes"}: what a person allowed to change when the run went on
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # what else the run wants to know of it
    base: Base | None = None  # that it lies over; None: it holds everything, as all of older formats do
    unsaid: tuple[str, ...] = ()


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide what a checkpoint holds, by name."""
    found = {name: metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")}
    return {"ofa_jax": __version__, **found}


def to_metadata(about: About) -> dict[str, Any]:
    """Returns what is saved, made of JSON's types. A metric that is not finite is left out."""
    return {
        "format": about.format,
        "versions": dict(about.versions),
        "config": to_json(about.config),
        "seed": about.config.seed,
        "identity": dict(about.identity),
        "metrics": {name: float(value) for name, value in about.metrics.items() if abs(float(value)) < float("inf")},
        "facts": dict(about.facts),
        "consents": [dict(consent) for consent in about.consents],
        "base": None if about.base is None else {**dataclasses.asdict(about.base), "params": list(about.base.params)},
    }


def from_metadata(found: Any, *, folder: Path) -> About:
    """Returns what a checkpoint in `folder` says of itself. Raises `CheckpointError` for what this program did not write, and for a format
    that is newer than this program."""
    if not isinstance(found, Mapping) or not {"config", "identity"} <= set(found):
        raise CheckpointError(f"{folder}: found no config in the checkpoint, expected one written by this program")
    version = found.get("format", 1)
    if not isinstance(version, int) or version > FORMAT:
        wrote = found.get("versions", {}).get("ofa_jax", "a newer one")
        raise CheckpointError(
            f"{folder}, format: found {version}, expected at most {FORMAT}; it was written by ofa_jax {wrote}, read it with that version"
        )
    names = ("versions", "seed", "digests of the data", "digests of its files") if version < 2 else ()
    base = found.get("base")
    return About(
        config=from_json(found["config"]),
        identity=dict(found["identity"]),
        format=version,
        versions=dict(found.get("versions", {})),
        metrics=dict(found.get("metrics", {})),
        facts=dict(found.get("facts", {})),
        consents=tuple(found.get("consents", ())),
        base=None if base is None else Base(**{**base, "params": tuple(base["params"])}),
        unsaid=names,
    )
