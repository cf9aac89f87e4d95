"""The closed set that a dataset's records give: each different name of a class or answer to a question, kept beside the shards."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import ImageRecord, open_records

_READ = 1_000  # records at a time


def write_answers(data_dir: str | os.PathLike[str], dataset: str, split: str, *, most: int, progress: Callable[[str], None]) -> Path:
    """Writes `<dataset>/answers.txt`, one answer a line, the most frequent first, equally frequent ones by their letters.

    Answers are those of a record's questions, or its captions where it has no questions. most: so many of them; 0: all.
    Raises DataError for a split without any.
    """
    source = open_records(data_dir, dataset, split)
    counts: Counter[str] = Counter()
    for start in range(0, len(source), _READ):
        for record in source.read(list(range(start, min(start + _READ, len(source))))):
            if isinstance(record, ImageRecord):
                counts.update([question.answer for question in record.questions] or [caption.text for caption in record.captions])
        progress(f"{dataset}/{split}: {min(start + _READ, len(source)):,} of {len(source):,} records, {len(counts):,} answers")
    if not counts:
        raise DataError(f"dataset {dataset} split {split}: found no answers and no captions in {len(source):,} records, expected some")
    listed = sorted(counts, key=lambda answer: (-counts[answer], answer))[: most or None]
    path = Path(data_dir) / dataset / "answers.txt"
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{answer}\n" for answer in listed), encoding="utf-8")
    partial.replace(path)
    share = sum(counts[answer] for answer in listed) / counts.total()
    progress(f"{path}: {len(listed):,} of {len(counts):,} different answers, {share:.1%} of all {counts.total():,}")
    return path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `answers` to the commands of `launch/prepare.py`."""
    parser = commands.add_parser("answers")
    parser.add_argument("--data_dir", type=Path, default=Path("data/finetune"))
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--most", type=int, default=0, help="so many of the most frequent; 0: all")


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> None:
    """Runs the command."""
    write_answers(args.data_dir, args.dataset, args.split, most=args.most, progress=progress)
