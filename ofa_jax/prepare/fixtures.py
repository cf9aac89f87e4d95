"""Tiny datasets of every row kind, made in seconds by the same builders as the quickstart's: for `:debug` runs and tests."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ofa_jax.prepare import codebook, frequencies, manifest, quickstart
from ofa_jax.prepare.builders import base, downstream, easy_vqa, prose, scenes

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


def write(data_dir: str | os.PathLike[str], *, datasets: Iterable[str] = (), rebuild: bool = False) -> Path:
    """Writes the fixtures below `data_dir` (the quickstart's layout) where they are not there already, and returns it as a path.

    datasets: those that are needed; of fine-tuning's (`builders/downstream`) only these are made.

    Raises `DataError` when the folder holds parts that were made with other options and `rebuild` is off.
    """
    path = Path(data_dir)
    quickstart.prepare(path, options=OPTIONS, rebuild=rebuild, progress=lambda _: None)
    counted = frequencies.frequencies_file(path, "scenes", "train")
    if "scenes" in set(datasets) and not counted.exists():
        frequencies.count_frequencies(path, "scenes", "train", progress=lambda _: None)
    options = downstream.DownstreamOptions()
    for name in sorted(set(datasets).intersection(downstream.NAMES)):
        builder = downstream.builder_of(name)
        if not manifest.is_done(path / name, options=base.options_of(builder, options), rebuild=rebuild):
            centers = codebook.load(path / "codebook.npz") if name == "paintings" else None
            base.build(builder, data_dir=path, options=options, max_records=options.train, progress=lambda _: None, centers=centers)
    return path
