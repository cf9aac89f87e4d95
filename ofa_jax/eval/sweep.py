"""Sweeps: checkpoints x ways to decode x sets. Every point is written as soon as it is known, so an interrupted sweep goes on.

A point's file says what it was computed of (`fingerprint`); the same command takes a point that is there and computes it again when
the checkpoint, the setting, the set or the answers are others. Pictures and references of a set are read once for all its points,
programs are compiled once for all checkpoints of one model.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ofa_jax.checkpoint.manager import COMMIT_MARKER, CheckpointManager, find_run
from ofa_jax.config.decoding import FORCED, DecodeSetting, SweepConfig, check_settings
from ofa_jax.config.errors import CheckpointError, ConfigError
from ofa_jax.config.render import config_hash
from ofa_jax.config.schema import EvalSetConfig, ModelConfig, RunConfig
from ofa_jax.data.records import SCHEMA_VERSION
from ofa_jax.decode.candidates import candidates
from ofa_jax.decode.constraints import Members
from ofa_jax.eval import leaderboard
from ofa_jax.eval.collect import Examples, block_for, collect, task_of
from ofa_jax.eval.predict import ClosedSet, Decoded, Predictor
from ofa_jax.eval.runner import Judge, chosen_sets
from ofa_jax.eval.world import World, load_world
from ofa_jax.models import ofa
from ofa_jax.parallel import hosts
from ofa_jax.tasks.table import TASK_NAMES
from ofa_jax.vocab.trie import build_trie

POINTS_DIR, TABLE = "points", "sweep"
_WATCH_EVERY_S = 5.0
COLUMNS = ("checkpoint", "set", "decode", "metric", "value", "low", "high", "baseline", "baseline_name", "n")


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
        """When it was completed: a checkpoint of the same name that was written again is another."""
        return (self.folder / "checkpoints" / str(self.step) / COMMIT_MARKER).stat().st_mtime_ns


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


def find_checkpoints(paths: Sequence[str | Path], *, all_steps: bool = False) -> tuple[Checkpoint, ...]:
    """Returns the checkpoints that paths of runs or single checkpoints name: a run's newest, or with `all_steps` all of them.

    Raises CheckpointError for a run without a complete checkpoint, ConfigError for two runs whose folders have one name.
    """
    found: list[Checkpoint] = []
    for path in paths:
        folder, step = find_run(path)
        steps = CheckpointManager(folder, read_only=True).steps()
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
    """Returns every point, set by set. Teacher-forced sets have one a checkpoint, since no setting changes them; a setting skips
    tasks it does not name, and boxes, objects and codes where it has a closed set.

    Raises ConfigError for a setting that fits no set.
    """
    found = []
    for eval_set in sets:
        task = task_of(eval_set)
        fitting = [s for s in settings if (not s.tasks or task.name in s.tasks) and (not s.answers or task.output == "text")]
        fitting = [FORCED] if task.scoring == "teacher_forced" else fitting
        found += [Point(c, eval_set, s) for c in checkpoints for s in fitting]
    for setting in settings:
        if found and not any(point.setting == setting for point in found):
            free = sorted({task_of(s).name for s in sets if task_of(s).scoring == "free"})
            raise ConfigError(f"decode {setting.name}: found no set it fits, expected one of its tasks among those of the sets: {free}")
    return tuple(found)


def run_sweep(
    world: World,
    sweep: SweepConfig,
    *,
    checkpoints: Sequence[Checkpoint],
    out: Path,
    progress: Callable[[str], None],
    submissions: leaderboard.Submissions | None = None,
) -> list[dict[str, Any]]:
    """Computes the points that `out` does not hold yet, writes them and the merged tables, and returns the table's rows (`COLUMNS`).

    submissions: the leaderboard file of every point is written too, of those that are there from their predictions. On several hosts
    all call it with the same arguments and one shared `out`; each decodes its share of a point's examples, the first scores and writes.
    Raises ConfigError for settings, sets or checkpoints that do not fit, before anything is computed.
    """
    check_settings(sweep.decode, task_names=TASK_NAMES)
    sets = chosen_sets(world.config, sweep.sets)
    everything = points(checkpoints, sweep.decode, sets)
    closed = {(p.eval_set.name, p.setting.name): closed_set(world, p.eval_set, p.setting) for p in everything if p.setting.answers}
    models = _Models(world.config)
    for checkpoint in checkpoints:
        models.check(checkpoint)
    judge = Judge(world.config, tokenizer=world.tokenizer, build_row=world.build_row, open_source=world.open_source)
    (out / POINTS_DIR).mkdir(parents=True, exist_ok=True)
    done: dict[Point, list[dict[str, Any]]] = {}
    for eval_set in sets:
        mine = [p for p in everything if p.eval_set == eval_set]
        prints = {p: fingerprint(world, p, closed.get((p.eval_set.name, p.setting.name))) for p in mine}
        stored = {p: rows for p in mine if (rows := _stored(out, p, prints[p])) is not None}
        known = {p for p, there in zip(mine, _agreed([p in stored for p in mine]), strict=True) if there}
        done |= {p: stored[p] for p in known if p in stored}
        for point in mine:
            if point in known:
                _submit(submissions, out, point, progress)
        if len(known) == len(mine):
            progress(f"{eval_set.name}: {len(mine)} of {len(mine)} points are there")
            continue
        examples = collect(world.config, eval_set, build_row=world.build_row, open_source=world.open_source)
        for point in mine:
            if point in known:
                continue
            predictor = models.predictor(point.checkpoint)
            found = decode_on_all_hosts(predictor, examples, point.setting, closed.get((point.eval_set.name, point.setting.name)))
            generated = predictor.generate(examples) if examples.task.output == "codes" and hosts.is_first() else None
            if hosts.is_first():
                results, lines = judge(examples, found.ids, generated=generated)
                for line, score in zip(lines, found.scores, strict=True):
                    line["checkpoint"], line["decode"] = point.checkpoint.name, point.setting.name
                    if not np.isnan(score):
                        line["log_prob" if point.setting.method == "score" else "hypothesis_score"] = float(score)
                done[point] = _rows(point, results)
                _write_point(out, point, prints[point], done[point], lines)
                first = done[point][0]
                total = len(done), len(everything)
                progress(f"{point.name}: {first['metric']} {first['value']:.3f}, {len(lines)} examples ({total[0]} of {total[1]} points)")
                _submit(submissions, out, point, progress)
    rows = [row for p in everything if p in done for row in done[p]]
    if hosts.is_first():
        write_tables(rows, out)
    return rows


def sweep_or_watch(
    config: RunConfig,
    sweep: SweepConfig,
    sets: Sequence[EvalSetConfig],
    *,
    default: Path,
    out: Path | None,
    all_steps: bool,
    watch: bool,
    progress: Callable[[str], None],
    submission: leaderboard.Request | None = None,
) -> list[dict[str, Any]]:
    """Runs a sweep from its paths and returns the table's rows.

    default: the run that is evaluated where the sweep names none. out: None is `sweep` in the first run's folder. watch: go on as the
    runs save further checkpoints, until each has the last step of its config. submission: leaderboard files are asked for.
    """
    world = load_world(config, sets)
    submissions = None if submission is None else leaderboard.prepare(world, sets, submission)
    paths = sweep.checkpoints or (str(default),)
    folder = out or find_run(paths[0])[0] / TABLE
    while True:
        found = find_checkpoints(paths, all_steps=all_steps or watch)
        rows = run_sweep(world, sweep, checkpoints=found, out=folder, progress=progress, submissions=submissions)
        unfinished = [path for path in paths if find_run(path)[1] is None and not _is_finished(find_run(path)[0])]
        if not watch or not unfinished:
            progress(f"tables and predictions: {folder}")
            return rows
        progress(f"waiting for further checkpoints of {', '.join(map(str, unfinished))}; Ctrl-C ends this, the same command goes on")
        while find_checkpoints(paths, all_steps=True) == found:
            time.sleep(_WATCH_EVERY_S)


def _is_finished(folder: Path) -> bool:
    manager = CheckpointManager(folder, read_only=True)
    return manager.steps()[-1] >= manager.config().steps


def closed_set(world: World, eval_set: EvalSetConfig, setting: DecodeSetting) -> ClosedSet:
    """Returns the compiled answers of a setting for a set, each written as targets are: with a leading space.

    Raises ConfigError for an empty set, an empty label, one given twice, or one longer than the outputs may be.
    """
    where = setting.answers if setting.answers != "training" else f"training answers of {eval_set.dataset}"
    if setting.answers == "training":
        labels = list(world.training_answers(eval_set))
    else:
        labels = Path(setting.answers).read_text(encoding="utf-8").splitlines()
    if not labels:
        raise ConfigError(f"decode {setting.name}: answers: {where}: found no label, expected at least one")
    for number, label in enumerate(labels, start=1):
        if not label.strip():
            raise ConfigError(f"decode {setting.name}: answers: {where}: line {number}: found an empty label, expected text")
    if len(set(labels)) < len(labels):
        twice = next(label for i, label in enumerate(labels) if label in labels[:i])
        raise ConfigError(f"decode {setting.name}: answers: {where}: found {twice!r} more than once, expected labels that differ")
    sequences = tuple(tuple(int(t) for t in ids) for ids in world.tokenizer.encode_batch([f" {label}" for label in labels]))
    limit = setting.max_len or block_for(world.config, eval_set)[1].target_len
    longest = max(range(len(labels)), key=lambda i: len(sequences[i]))
    if len(sequences[longest]) > limit:
        raise ConfigError(
            f"decode {setting.name}: answers: {where}: found {labels[longest]!r} of {len(sequences[longest])} tokens, expected at most "
            f"{limit}, the length of outputs (max_len changes it)"
        )
    return ClosedSet(tuple(labels), sequences, Members.of(build_trie(sequences)), candidates(sequences))


def decode_on_all_hosts(predictor: Predictor, examples: Examples, setting: DecodeSetting, closed: ClosedSet | None) -> Decoded:
    """Returns the outputs of all examples, in order, every one decoded once: host h of n decodes examples h, h + n, ..."""
    index, count = hosts.index(), hosts.count()
    mine = dataclasses.replace(examples, examples=examples.examples[index::count])
    if not mine.examples:
        found = Decoded([], np.zeros(0))
    elif examples.task.scoring == "teacher_forced":
        found = Decoded(predictor.forced(mine), np.full(len(mine.examples), np.nan))
    else:
        found = predictor.decode(mine, setting, closed)
    if count == 1:
        return found
    content = io.BytesIO()
    lengths = np.array([len(row) for row in found.ids], np.int32)
    flat = np.concatenate([*found.ids, np.zeros(0, np.int32)]).astype(np.int32)
    np.savez(content, lengths=lengths, flat=flat, scores=found.scores)
    ids: list[Any] = [None] * len(examples.examples)
    scores = np.zeros(len(examples.examples))
    for host, part in enumerate(hosts.gather(content.getvalue())):
        with np.load(io.BytesIO(part)) as stored:
            ids[host::count] = np.split(stored["flat"], np.cumsum(stored["lengths"]))[:-1]
            scores[host::count] = stored["scores"]
    return Decoded(ids, scores)


class _Models:
    """Predictors of checkpoints: one set of parameters at a time, one compilation for all checkpoints of one model."""

    def __init__(self, config: RunConfig):
        self._config = config
        self._structures: dict[ModelConfig, tuple[Any, Any, Predictor]] = {}
        self._last: tuple[Checkpoint, Predictor] | None = None

    def _structure(self, model: ModelConfig) -> tuple[Any, Any, Predictor]:
        """Abstract parameters and statistics of a model, and a predictor of it without weights."""
        if model not in self._structures:
            vocab, precision = self._config.vocab, self._config.precision
            graphdef, abstract = jax.eval_shape(lambda: ofa.create(model, vocab, jax.random.key(0), precision=precision))
            stats = jax.eval_shape(lambda: ofa.init_stats(model, precision=precision))
            predictor = Predictor(graphdef, None, None, vocab=vocab, batch_rows=self._config.eval.batch_rows)
            self._structures[model] = abstract, stats, predictor
        return self._structures[model]

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises ConfigError when a checkpoint's vocabulary is not that of the config the data is read with."""
        stored = CheckpointManager(checkpoint.folder, read_only=True).config(checkpoint.step).vocab
        theirs, ours = (dataclasses.replace(v, path="") for v in (stored, self._config.vocab))
        if theirs != ours:
            raise ConfigError(f"--checkpoint: {checkpoint.name}: found the vocabulary {theirs}, expected {ours} as in --config")

    def predictor(self, checkpoint: Checkpoint) -> Predictor:
        """Returns the predictor with the checkpoint's parameters."""
        if self._last is None or self._last[0] != checkpoint:
            self._last = None  # the old parameters go before the new ones come
            manager = CheckpointManager(checkpoint.folder, read_only=True)
            abstract, stats, predictor = self._structure(manager.config(checkpoint.step).model)
            restored = manager.restore_params(abstract, stats, step=checkpoint.step)
            weights = restored.params, restored.stats
            if hosts.count() > 1:  # each host decodes its own share, on a device of its own
                weights = jax.tree.map(lambda leaf: leaf.addressable_data(0), weights)
            self._last = checkpoint, predictor.with_params(*weights)
        return self._last[1]


def fingerprint(world: World, point: Point, closed: ClosedSet | None) -> str:
    """Returns a digest of everything a point's numbers depend on, but for the records themselves."""
    config = dataclasses.replace(world.config, eval=dataclasses.replace(world.config.eval, sets=(), batch_rows=1))
    facts = {
        "config": config_hash(config),
        "tokenizer": world.tokenizer.digest,
        "checkpoint": [str(point.checkpoint.folder), point.checkpoint.step, point.checkpoint.saved_ns],
        "set": dataclasses.asdict(point.eval_set),
        "setting": dataclasses.asdict(point.setting),
        "labels": list(closed.labels) if closed else [],
        "records": SCHEMA_VERSION,
        "metrics": list(task_of(point.eval_set).metrics),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _agreed(flags: list[bool]) -> list[bool]:
    """What the first host found: the disk of another may lag behind."""
    return [bool(flag) for flag in hosts.gather(bytes(flags))[0]]


def _rows(point: Point, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
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


def _paths(out: Path, point: Point) -> tuple[Path, Path]:
    stem = out / POINTS_DIR / point.file_name
    return stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".predictions.jsonl")


def _stored(out: Path, point: Point, wanted: str) -> list[dict[str, Any]] | None:
    path, predictions = _paths(out, point)
    if not path.is_file() or not predictions.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["rows"] if content["fingerprint"] == wanted else None


def _write_point(out: Path, point: Point, mark: str, rows: list[dict[str, Any]], lines: list[dict[str, Any]]) -> None:
    path, predictions = _paths(out, point)
    path.unlink(missing_ok=True)  # an old result never stands beside new predictions
    (out / leaderboard.FOLDER / f"{point.file_name}{leaderboard.ENDING}").unlink(missing_ok=True)
    _write(predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    _write(path, json.dumps({"point": point.name, "fingerprint": mark, "rows": rows}, indent=1) + "\n")


def _submit(submissions: leaderboard.Submissions | None, out: Path, point: Point, progress: Callable[[str], None]) -> None:
    """Writes a point's leaderboard file, where one is asked for and its task has a format."""
    if submissions is not None and point.eval_set.name in submissions and hosts.is_first():
        if said := submissions.write_stored(point.eval_set.name, _paths(out, point)[1], results=out, name=point.file_name):
            progress(said)


def _write(path: Path, text: str) -> None:
    """Writes a file that is whole or not there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def write_tables(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Writes `sweep.json` (the rows), `sweep.csv` and `sweep.md` into `out`."""
    _write(out / f"{TABLE}.json", json.dumps(list(rows), indent=1) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(out / f"{TABLE}.csv", text.getvalue())
    header, *body = _cells(rows)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *body)]
    _write(out / f"{TABLE}.md", "\n".join(lines) + "\n")


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table for a terminal: one line a set, metric and checkpoint, one column a way to decode."""
    cells = _cells(rows)
    widths = [max(len(row[c]) for row in cells) for c in range(len(cells[0]))]
    lines = ["  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Sets, metrics and checkpoints down, ways to decode across; each cell a value with its interval."""
    settings = list(dict.fromkeys(row["decode"] for row in rows))
    table: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        table.setdefault((row["set"], row["metric"], row["checkpoint"]), {})[row["decode"]] = row
    return [["set", "metric", "checkpoint", *settings, "baseline", "n"], *_body(table, settings)]


def _body(table: dict[tuple[str, str, str], dict[str, dict[str, Any]]], settings: list[str]) -> Iterator[list[str]]:
    for key, found in table.items():
        any_row = next(iter(found.values()))
        values = [f"{found[s]['value']:.3f} ({found[s]['low']:.3f} .. {found[s]['high']:.3f})" if s in found else "" for s in settings]
        yield [*key, *values, f"{any_row['baseline']:.3f}", str(any_row["n"])]
