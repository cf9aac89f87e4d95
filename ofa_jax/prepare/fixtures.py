"""Tiny datasets of every row kind, made in seconds by the same builders as the quickstart's: for `:debug` runs and tests."""

from __future__ import annotations

import os
from pathlib import Path

from ofa_jax.prepare import quickstart
from ofa_jax.prepare.builders import easy_vqa, prose, scenes

NUM_TEXT = 400  # text ids of the fixtures' tokeniser, MASK included
NUM_CODES = 32

OPTIONS = quickstart.QuickstartOptions(
    easy_vqa=easy_vqa.EasyVqaOptions(max_images=48, validation_every=8),
    scenes=scenes.ScenesOptions(
        train=64, validation=16, seen_composition=8, unseen_composition=8, unseen_artwork=8, num_codes=NUM_CODES, codebook_pictures=32
    ),
    prose=prose.ProseOptions(docstrings=False, max_passages=64),
    num_text=NUM_TEXT,
)


def write(data_dir: str | os.PathLike[str], *, rebuild: bool = False) -> Path:
    """Writes the fixtures below `data_dir` (the quickstart's layout) where they are not there already, and returns it as a path.

    Raises `DataError` when the folder holds parts that were made with other options and `rebuild` is off.
    """
    path = Path(data_dir)
    quickstart.prepare(path, options=OPTIONS, rebuild=rebuild, progress=lambda _: None)
    return path
