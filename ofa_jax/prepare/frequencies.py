"""Document frequencies of a dataset's captions, which CIDEr-D of a reward weighs words by: counted once, kept beside the shards."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import ImageRecord, open_records
from ofa_jax.metrics.document_frequencies import document_frequencies, ended, write_frequencies

_READ = 1_000  # records at a time


def frequencies_file(data_dir: str | os.PathLike[str], dataset: str, split: str) -> Path:
    """Returns where the frequencies of a split lie."""
    return Path(data_dir) / dataset / f"frequencies-{split}.json"


def count_frequencies(data_dir: str | os.PathLike[str], dataset: str, split: str, *, progress: Callable[[str], None]) -> Path:
    """Counts the n-grams of all captions of a split, a picture's together and each text as rewards read it (`ended`), writes the file in
    one move and returns its path. Raises DataError for a split without captions."""
    source = open_records(data_dir, dataset, split)
    references = []
    for start in range(0, len(source), _READ):
        records = source.read(list(range(start, min(start + _READ, len(source)))))
        references += [
            [ended(c.text) for c in record.captions] for record in records if isinstance(record, ImageRecord) and record.captions
        ]
        progress(f"{dataset}/{split}: {min(start + _READ, len(source)):,} of {len(source):,} records")
    if not references:
        raise DataError(f"dataset {dataset} split {split}: found no captions in {len(source):,} records, expected some")
    path = frequencies_file(data_dir, dataset, split)
    write_frequencies(path, document_frequencies(references))
    return path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `frequencies` to the commands of `launch/prepare.py`."""
    parser = commands.add_parser("frequencies")
    parser.add_argument("--data_dir", type=Path, default=Path("data/finetune"))
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="train")


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> None:
    """Runs the command."""
    progress(f"{count_frequencies(args.data_dir, args.dataset, args.split, progress=progress)} is written")
