"""Two evaluations of the same examples beside each other: by how much the second is better, with a paired interval.

What both scored is in their predictions.jsonl, a score an example by the first metric of its set. Resampled are records, the same in both,
so what makes a picture easy for both runs does not widen the interval (Koehn 2004, "Statistical significance tests for machine translation
evaluation", paired bootstrap). The difference of means is the difference of the metric wherever that is a mean over examples, as CIDEr,
accuracies and box accuracy are; BLEU, AP and the like are no means, and their sets have another first metric.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.eval.runner import PREDICTIONS_FILE, RESULTS_FILE
from ofa_jax.metrics.bootstrap import interval_95
from ofa_jax.metrics.measured import mean

_SAME = ("record", "dataset", "task", "instruction", "reference")  # what makes two lines one example


@dataclasses.dataclass(frozen=True)
class Compared:
    """One set: the mean scores of both runs and their difference, second less first."""

    name: str
    metric: str
    first: float
    second: float
    interval_95: tuple[float, float]  # of the difference
    n: int

    @property
    def difference(self) -> float:
        return self.second - self.first


def compare(first: Path, second: Path, *, sets: Sequence[str] = (), num_samples: int = 10_000) -> list[Compared]:
    """Compares what two runs' folders hold, set by set; sets: names of some of those that both have, default all.

    Raises DataError where files are missing, there is no set of both, or a set's examples are not the same.
    """
    metrics, ours = _read(first)
    _, theirs = _read(second)
    both = [name for name in ours if name in theirs]
    if missing := [name for name in sets if name not in both]:
        raise DataError(f"--sets: found {missing[0]}, expected one that both evaluations have: {', '.join(both) or 'none'}")
    if not both:
        raise DataError(f"{first} and {second}: found no set that both evaluated, expected one; {first} has {', '.join(ours)}")
    return [_compared(name, metrics[name], ours[name], theirs[name], second, num_samples) for name in sets or both]


def format_compared(rows: Sequence[Compared]) -> str:
    """Returns the comparison as a Markdown table."""
    lines = ["| set | metric | first | second | difference | 95 % interval, paired | n |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        low, high = row.interval_95
        values = f"{row.first:.3f} | {row.second:.3f} | {row.difference:+.3f} | {low:+.3f} .. {high:+.3f}"
        lines.append(f"| {row.name} | {row.metric} | {values} | {row.n} |")
    return "\n".join(lines)


def _read(folder: Path) -> tuple[dict[str, str], dict[str, list[dict[str, Any]]]]:
    """The first metric and the lines of every set of a run's folder."""
    for name in (RESULTS_FILE, PREDICTIONS_FILE):
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: found no such file, expected the results of launch/eval.py")
    results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    lines: dict[str, list[dict[str, Any]]] = {}
    with open(folder / PREDICTIONS_FILE, encoding="utf-8") as file:
        for line in map(json.loads, file):
            lines.setdefault(line["set"], []).append(line)
    return {name: next(iter(metrics)) for name, metrics in results.items()}, lines


def _compared(
    name: str, metric: str, first: list[dict[str, Any]], second: list[dict[str, Any]], folder: Path, num_samples: int
) -> Compared:
    if len(first) != len(second):
        raise DataError(f"{folder}: set {name}: found {len(second)} examples, expected {len(first)} as in the first run")
    for number, (ours, theirs) in enumerate(zip(first, second, strict=True), 1):
        for field in _SAME:
            if ours[field] != theirs[field]:
                where = f"{folder}: set {name}: example {number}: field {field}"
                raise DataError(f"{where}: found {theirs[field]!r}, expected {ours[field]!r} as in the first")
    scores = [np.array([line["score"] for line in lines]) for lines in (first, second)]
    difference = mean(scores[1] - scores[0])
    interval = interval_95(difference, records=[line["record"] for line in first], num_samples=num_samples)
    return Compared(name, metric, float(scores[0].mean()), float(scores[1].mean()), interval, difference.n)
