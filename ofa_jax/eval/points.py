"""The points of a sweep, one for every checkpoint, set and way to decode: which there are, and their files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofa_jax.checkpoint.folders import COMMIT_MARKER, find_run
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.decoding import FORCED, DecodeSetting
from ofa_jax.config.errors import CheckpointError, ConfigError
from ofa_jax.config.render import config_hash
from ofa_jax.config.schema import EvalSetConfig
from ofa_jax.data.records import SCHEMA_VERSION
from ofa_jax.eval import leaderboard
from ofa_jax.eval.collect import task_of
from ofa_jax.eval.painting import load_judges
from ofa_jax.eval.predict import ClosedSet
from ofa_jax.eval.rank import NamedScorer
from ofa_jax.eval.world import World

POINTS_DIR = "points"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a sweep."""

    folder: Path  # of the run
    step: int

    @property
    def name(self) -> str:
        return f"{self.folder.name}@{self.step}"

    @property
    def saved_ns(self) -> int:
        """When it was completed: a checkpoint of the same name that was written again is another. Raises CheckpointError where it is
        gone."""
        if not self._marker.exists():
            raise CheckpointError(f"{self.name}: found it deleted, expected it to stay; its run keeps the newest only (checkpoint.keep)")
        return self._marker.stat().st_mtime_ns

    @property
    def is_there(self) -> bool:
        """Whether it is still complete on disk."""
        return self._marker.exists()

    @property
    def _marker(self) -> Path:
        return self.folder / "checkpoints" / str(self.step) / COMMIT_MARKER


@dataclasses.dataclass(frozen=True)
class Point:
    """One cell of the sweep."""

    checkpoint: Checkpoint
    eval_set: EvalSetConfig
    setting: DecodeSetting

    @property
    def name(self) -> str:
        return f"{self.checkpoint.name}/{self.eval_set.name}/{self.setting.name}"

    @property
    def file_name(self) -> str:
        """The name made one of a file, with a digest, so that no two points share one."""
        plain = re.sub(r"[^A-Za-z0-9@._-]+", "-", self.name)
        return f"{plain}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


def find_checkpoints(paths: Sequence[str | Path], *, all_steps: bool = False, early: bool = False) -> tuple[Checkpoint, ...]:
    """Returns the checkpoints that paths of runs or single checkpoints name: a run's newest, or with `all_steps` all of them.

    Raises CheckpointError for a run without a complete checkpoint (with `early` it has none yet), ConfigError for two runs whose
    folders have one name.
    """
    found: list[Checkpoint] = []
    for path in paths:
        folder, step = find_run(path)
        steps = CheckpointManager(folder, read_only=True).steps()
        if early and not steps and step is None:
            continue
        if not steps or (step is not None and step not in steps):
            wanted = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
            raise CheckpointError(f"{path}: found {wanted}, expected a run's folder or one of its checkpoints")
        chosen = [step] if step is not None else steps if all_steps else steps[-1:]
        found += [Checkpoint(folder.absolute(), s) for s in chosen]
    unique = tuple(dict.fromkeys(found))
    for name in {c.name for c in unique}:
        same = [c for c in unique if c.name == name]
        if len(same) > 1:
            raise ConfigError(f"--checkpoint: found {same[0].folder} and {same[1].folder}, expected folders of different names")
    return unique


def points(checkpoints: Sequence[Checkpoint], settings: Sequence[DecodeSetting], sets: Sequence[EvalSetConfig]) -> tuple[Point, ...]:
    """Returns every point, set by set. Teacher-forced sets have one a checkpoint, since no setting changes them, but for codes, which
    settings that name their task generate too; a setting skips tasks it does not name, and what is no text where it has a closed set.

    Raises ConfigError for a setting that fits no set.
    """
    found = []
    for eval_set in sets:
        task = task_of(eval_set)
        fitting = [s for s in settings if (not s.tasks or task.name in s.tasks) and (not s.answers or task.output == "text")]
        if task.scoring == "teacher_forced":  # codes are generated too, by settings that name their task
            fitting = [s for s in settings if task.output == "codes" and task.name in s.tasks] or [FORCED]
        found += [Point(c, eval_set, s) for c in checkpoints for s in fitting]
    for setting in settings:
        if found and not any(point.setting == setting for point in found):
            free = sorted({task_of(s).name for s in sets if task_of(s).scoring == "free" or task_of(s).output == "codes"})
            raise ConfigError(f"decode {setting.name}: found no set it fits, expected one of its tasks among those of the sets: {free}")
    return tuple(found)


def fingerprint(world: World, point: Point, closed: ClosedSet | None) -> tuple[str, str]:
    """Returns digests of everything a point's numbers depend on, but for the records themselves: without the checkpoint, and with it."""
    config = dataclasses.replace(world.config, eval=dataclasses.replace(world.config.eval, sets=(), batch_rows=1))
    facts = {
        "config": config_hash(config),
        "tokenizer": world.tokenizer.digest,
        "set": dataclasses.asdict(point.eval_set),
        "setting": dataclasses.asdict(point.setting),
        "records": SCHEMA_VERSION,
        "metrics": list(task_of(point.eval_set).metrics),
        "labels": list(closed.labels) if closed else [],
        "judges": load_judges(world.config.eval.pictures) if point.eval_set.task == "image_generation" else [],
        "scorer": NamedScorer.load(point.setting.scorer).digest() if point.setting.scorer else "",
    }
    checkpoint = [str(point.checkpoint.folder), point.checkpoint.step, point.checkpoint.saved_ns]
    made_with, whole = (
        hashlib.sha256(json.dumps(f, sort_keys=True).encode()).hexdigest() for f in (facts, {**facts, "checkpoint": checkpoint})
    )
    return made_with, whole


def rows_of(point: Point, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the table's rows of a point, one a metric, with the fields that `sweep_table.COLUMNS` names."""
    return [
        {
            "checkpoint": point.checkpoint.name,
            "set": point.eval_set.name,
            "decode": point.setting.name,
            "metric": metric,
            "value": found["value"],
            "low": found["interval_95"][0],
            "high": found["interval_95"][1],
            "baseline": found["baseline"],
            "baseline_name": found["baseline_name"],
            "n": found["n"],
        }
        for metric, found in results.items()
    ]


def point_files(out: Path, point: Point) -> tuple[Path, Path]:
    """Returns where a point's rows and its predictions are kept."""
    stem = out / POINTS_DIR / point.file_name
    return stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".predictions.jsonl")


def read_point(out: Path, point: Point, wanted: tuple[str, str]) -> list[dict[str, Any]] | None:
    """Returns a point's rows where they are stored and `wanted`, its `fingerprint`, is theirs."""
    path, predictions = point_files(out, point)
    if not path.is_file() or not predictions.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["rows"] if content.get("fingerprint") == wanted[1] else None


def write_point(out: Path, point: Point, marks: tuple[str, str], rows: list[dict[str, Any]], lines: list[dict[str, Any]]) -> None:
    """Writes a point's rows and predictions; `marks` is its `fingerprint`."""
    path, predictions = point_files(out, point)
    path.unlink(missing_ok=True)  # an old result never stands beside new predictions
    (out / leaderboard.FOLDER / f"{point.file_name}{leaderboard.ENDING}").unlink(missing_ok=True)
    write_whole(predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_whole(path, json.dumps({"point": point.name, "made_with": marks[0], "fingerprint": marks[1], "rows": rows}, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is whole or not there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def with_deleted(
    rows: list[dict[str, Any]], world: World, everything: Sequence[Point], closed: dict[tuple[str, str], ClosedSet], out: Path
) -> list[dict[str, Any]]:
    """Returns the rows, in their order by set, with those of earlier points of the same runs whose checkpoints are deleted by now."""
    known = {p.file_name for p in everything}
    folders = {p.checkpoint.folder for p in everything}
    wanted = {fingerprint(world, p, closed.get((p.eval_set.name, p.setting.name)))[0] for p in everything}
    found = []
    for path in sorted((out / POINTS_DIR).glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        run, _, step = content["point"].split("/", 1)[0].rpartition("@")
        if path.stem in known or content.get("made_with") not in wanted:
            continue
        if any(folder.name == run and not Checkpoint(folder, int(step)).is_there for folder in folders):
            found.append((int(step), content["rows"]))
    merged = [row for _, old in sorted(found, key=lambda one: one[0]) for row in old] + rows
    sets = list(dict.fromkeys(p.eval_set.name for p in everything))
    return sorted(merged, key=lambda row: sets.index(row["set"]))
