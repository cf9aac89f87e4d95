"""The closed set that a dataset's records give: each different name of a class or answer to a question, kept beside the shards."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import ImageRecord, Question, open_records

_READ = 1_000  # records at a time


def write_answers(
    data_dir: str | os.PathLike[str], dataset: str, split: str, *, most: int, rebuild: bool = False, progress: Callable[[str], None]
) -> Path:
    """Writes `<dataset>/answers.txt`, one answer a line, the most frequent first, equally frequent ones by their letters.

    Answers are those of a record's questions, all that fine-tuning learns, or its captions where it has no questions. most: so many of
    them; 0: all. Raises DataError for a split without any, a negative `most`, and where another list is there and `rebuild` is off: it
    may be an official one.
    """
    if most < 0:
        raise DataError(f"--most: found {most}, expected at least 0")
    source = open_records(data_dir, dataset, split)
    counts: Counter[str] = Counter()
    for start in range(0, len(source), _READ):
        for record in source.read(list(range(start, min(start + _READ, len(source))))):
            if isinstance(record, ImageRecord):
                counts.update(answer for question in record.questions for answer in _answers(question))
                counts.update(caption.text for caption in record.captions if not record.questions)
        progress(f"{dataset}/{split}: {min(start + _READ, len(source)):,} of {len(source):,} records, {len(counts):,} answers")
    if not counts:
        raise DataError(f"dataset {dataset} split {split}: found no answers and no captions in {len(source):,} records, expected some")
    listed = sorted(counts, key=lambda answer: (-counts[answer], answer))[: most or None]
    path = Path(data_dir) / dataset / "answers.txt"
    text = "".join(f"{answer}\n" for answer in listed)
    if path.exists() and not rebuild and (found := path.read_text(encoding="utf-8")) != text:
        raise DataError(f"{path}: found another list of {len(found.splitlines()):,} answers, expected none; --rebuild replaces it")
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    share = sum(counts[answer] for answer in listed) / counts.total()
    progress(f"{path}: {len(listed):,} of {len(counts):,} different answers, {share:.1%} of all {counts.total():,}")
    return path


def _answers(question: Question) -> list[str]:
    return [target.answer for target in question.targets] or [question.answer]


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `answers` to the commands of `launch/prepare.py`."""
    parser = commands.add_parser("answers")
    parser.add_argument("--data_dir", type=Path, default=Path("data/finetune"))
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--most", type=int, default=0, help="so many of the most frequent; 0: all")
    parser.add_argument("--rebuild", action="store_true", help="replace another list that is there")


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> None:
    """Runs the command."""
    write_answers(args.data_dir, args.dataset, args.split, most=args.most, rebuild=args.rebuild, progress=progress)
