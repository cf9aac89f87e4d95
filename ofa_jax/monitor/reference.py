"""Bands of losses to compare a run with: made of finished runs of the same config, kept as a small JSON file.

A curve of the band is what the runs' records say within two records of a step: with several runs their lowest and highest value, with one
run their mean, less and more a tolerance. A lower loss than the band is "ahead", a higher one "behind"; between two steps of a curve the
bounds are interpolated, before its first and after its last there is nothing to compare.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.monitor.writers import Number

FORMAT = 1
LOSSES = ("loss/total", "loss/nll/", "held_out/loss", "held_out/nll/")  # names, or beginnings of names, that a band has
REACH = 2  # records before and after a step that count for it
MAX_POINTS = 200  # of a curve; more are thinned evenly


@dataclasses.dataclass(frozen=True)
class Band:
    """Curves by metric name: steps [n], ascending, and the lowest and highest usual value at each, float [n]."""

    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def bounds(self, name: str, step: int) -> tuple[float, float] | None:
        """Returns (low, high) of the metric `name` at `step`, or None where the band says nothing of it."""
        if name not in self.curves:
            return None
        steps, low, high = self.curves[name]
        if not steps[0] <= step <= steps[-1]:
            return None
        return float(np.interp(step, steps, low)), float(np.interp(step, steps, high))

    def compare(self, record: Mapping[str, Number | None]) -> dict[str, float]:
        """Returns `reference/<metric>` of what the band knows of a record: 0 within the band, else the distance to its nearer bound over
        that bound, negative below (ahead), positive above (behind)."""
        found = {}
        for name, value in record.items():
            bounds = self.bounds(name, int(record["step"] or 0)) if value is not None else None
            if bounds is not None and value is not None and math.isfinite(value):
                low, high = bounds
                nearest = low if value < low else high if value > high else value
                found[f"reference/{name}"] = float(value - nearest) / max(abs(nearest), 1e-9)
        return found


def say(distance: float) -> str:
    """Returns what a number of `Band.compare` means, as a person says it."""
    if distance == 0:
        return "within the band"
    return f"{100 * abs(distance):.1f} % {'ahead of' if distance < 0 else 'behind'} the band"


def make_band(runs: Sequence[Sequence[Mapping[str, Any]]], *, tolerance: float) -> dict[str, Any]:
    """Returns the content of a band file from the records of one or more runs.

    tolerance: of a single run's curve, as a part of its value; several runs show by themselves how far they differ. Raises ConfigError
    where a run has no record with a loss.
    """
    names = sorted({name for run in runs for record in run for name in record if name.startswith(LOSSES)})
    if not names:
        raise ConfigError("runs: found no record with a loss, expected metrics.jsonl of runs that trained")
    curves = {}
    for name in names:
        points = [_points(run, name) for run in runs]
        if not all(points):
            continue  # a task that not every run has
        steps = sorted(set.intersection(*(set(of_run) for of_run in points)))
        steps = [steps[index] for index in sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(len(steps), MAX_POINTS))})]
        rows = [[step, *_bounds([_near(of_run, step) for of_run in points], tolerance)] for step in steps]
        if rows:
            curves[name] = rows
    return {"format": FORMAT, "runs": len(runs), "tolerance": tolerance if len(runs) == 1 else None, "curves": curves}


def _points(run: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    return {record["step"]: record[name] for record in run if record.get(name) is not None}


def _near(points: Mapping[int, float], step: int) -> list[float]:
    """The values of the records around a step, fewer at the ends so that it stays in the middle."""
    steps = sorted(points)
    at = steps.index(step)
    reach = min(REACH, at, len(steps) - 1 - at)
    return [points[s] for s in steps[at - reach : at + reach + 1]]


def _bounds(values: Sequence[Sequence[float]], tolerance: float) -> tuple[float, float]:
    if len(values) > 1:
        return _short(min(map(min, values))), _short(max(map(max, values)))
    mean = float(np.mean(values[0]))
    return _short(mean - tolerance * abs(mean)), _short(mean + tolerance * abs(mean))


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def read_band(path: str | Path) -> Band:
    """Returns the band of a file. Raises ConfigError, one sentence, where there is none or it is not what `make_band` makes."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"reference band {path}: cannot be read: {error.strerror or error}; launch/reference.py makes one") from error
    except ValueError as error:
        raise ConfigError(f"reference band {path}: found no JSON ({error}), expected a file of launch/reference.py") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"reference band {path}: field format: found {found}, expected {FORMAT}; make it again with launch/reference.py")
    curves = {}
    for name, rows in content.get("curves", {}).items():
        try:
            table = np.asarray(rows, np.float64)
        except (TypeError, ValueError):
            table = np.empty(0)
        if table.ndim != 2 or table.shape[1] != 3 or not np.all(np.diff(table[:, 0]) > 0):
            raise ConfigError(f"reference band {path}: curve {name}: expected rows of step, low, high with ascending steps")
        curves[name] = (table[:, 0], table[:, 1], table[:, 2])
    return Band(curves)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Returns the records of a `metrics.jsonl`, or of the one in a run's folder; a last line that a kill cut off is left out.

    Raises ConfigError where there is no such file.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"metrics: found no file {path}, expected a run's folder or its metrics.jsonl")
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
