"""Sweeps: checkpoints x ways to decode x sets. Every point is written as soon as it is known, so an interrupted sweep goes on.

A point's file says what it was computed of (`fingerprint`); the same command takes a point that is there and computes it again when
the checkpoint, the setting, the set or the answers are others. Pictures and references of a set are read once for all its points,
programs are compiled once for all checkpoints of one model.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ofa_jax.checkpoint.folders import find_run
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.check import unreadable_sets
from ofa_jax.config.decoding import DecodeSetting, SweepConfig, check_settings
from ofa_jax.config.errors import CheckpointError, ConfigError
from ofa_jax.config.schema import EvalSetConfig, ModelConfig, RunConfig
from ofa_jax.eval import leaderboard
from ofa_jax.eval.collect import Examples, collect
from ofa_jax.eval.gallery import GALLERY_FILE, Gallery
from ofa_jax.eval.painting import generate
from ofa_jax.eval.points import (
    POINTS_DIR,
    Checkpoint,
    Point,
    find_checkpoints,
    fingerprint,
    point_files,
    points,
    read_point,
    rows_of,
    with_deleted,
    write_point,
)
from ofa_jax.eval.predict import ClosedSet, Decoded, Predictor
from ofa_jax.eval.rank import NamedScorer, ranked
from ofa_jax.eval.runner import Judge, chosen_sets
from ofa_jax.eval.shares import gather_shares, own_share
from ofa_jax.eval.sweep_table import TABLE, cells_of, write_tables
from ofa_jax.eval.ways import closed_set
from ofa_jax.eval.world import World, load_world
from ofa_jax.models import ofa
from ofa_jax.parallel import hosts
from ofa_jax.tasks.table import TASK_NAMES

_WATCH_EVERY_S = 5.0


def run_sweep(
    world: World,
    sweep: SweepConfig,
    *,
    checkpoints: Sequence[Checkpoint],
    out: Path,
    progress: Callable[[str], None],
    render: bool = False,
    submissions: leaderboard.Submissions | None = None,
) -> list[dict[str, Any]]:
    """Computes the points that `out` does not hold yet, writes them and the merged tables, and returns the table's rows (`COLUMNS`).

    render: `sweep.html` is written too, with examples of every set. submissions: the leaderboard file of every point is written too,
    of those that are there from their predictions.

    On several hosts all call it with the same arguments and one shared `out`; each decodes its share of a point's examples, the first
    scores and writes. Raises ConfigError for settings, sets or checkpoints that do not fit, before anything is computed.
    """
    check_settings(sweep.decode, task_names=TASK_NAMES)
    sets = chosen_sets(world.config, sweep.sets)
    everything = points(checkpoints, sweep.decode, sets)
    closed = {(p.eval_set.name, p.setting.name): closed_set(world, p.eval_set, p.setting) for p in everything if p.setting.answers}
    models = _Models(world.config)
    for checkpoint in checkpoints:
        models.check(checkpoint, sets)
    judge = Judge(world.config, tokenizer=world.tokenizer, build_row=world.build_row, open_source=world.open_source)
    (out / POINTS_DIR).mkdir(parents=True, exist_ok=True)
    done: dict[Point, list[dict[str, Any]]] = {}
    for eval_set in sets:
        mine = [p for p in everything if p.eval_set == eval_set]
        prints = {p: fingerprint(world, p, closed.get((p.eval_set.name, p.setting.name))) for p in mine}
        stored = {p: rows for p in mine if (rows := read_point(out, p, prints[p])) is not None}
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
            answers = closed.get((point.eval_set.name, point.setting.name))
            found = decode_on_all_hosts(world, predictor, examples, point.setting, answers)
            generated = None
            if examples.task.output == "codes":
                way = point.setting if point.setting.tasks else None
                generated = generate(
                    predictor, examples, way, config=world.config, codec=judge.codec, tokenizer=world.tokenizer
                )  # fmt: skip
            if hosts.is_first():
                results, lines = judge(examples, found.ids, generated=generated)
                for line, score in zip(lines, found.scores, strict=True):
                    line["checkpoint"], line["decode"] = point.checkpoint.name, point.setting.name
                    if not np.isnan(score):
                        line["log_prob" if point.setting.method == "score" else "hypothesis_score"] = float(score)
                for line, score in zip(lines, () if found.rank_scores is None else found.rank_scores, strict=False):
                    line["scorer_score"] = float(score)
                done[point] = rows_of(point, results)
                write_point(out, point, prints[point], done[point], lines)
                first = done[point][0]
                total = len(done), len(everything)
                progress(f"{point.name}: {first['metric']} {first['value']:.3f}, {len(lines)} examples ({total[0]} of {total[1]} points)")
                _submit(submissions, out, point, progress)
    rows = [row for p in everything if p in done for row in done[p]]
    if hosts.is_first():
        rows = with_deleted(rows, world, everything, closed, out)
        write_tables(rows, out)
        if render:
            _render(world, everything, rows, out)
    return rows


def _render(world: World, everything: Sequence[Point], rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Draws what the points' files hold, with the pictures of the sets read again: the points may be those of an earlier run."""
    gallery = Gallery(world.config.data.dir, world.config.eval.report_examples)
    for eval_set in dict.fromkeys(point.eval_set for point in everything):
        mine = [p for p in everything if p.eval_set == eval_set]
        several = len({p.checkpoint for p in mine}) > 1
        named = [(f"{p.checkpoint.name}, {p.setting.name}" if several else p.setting.name, point_files(out, p)[1]) for p in mine]
        gallery.add(collect(world.config, eval_set, build_row=world.build_row, open_source=world.open_source), named)
    gallery.write(out / GALLERY_FILE, title=f"{world.config.name}: {out.name}", table=cells_of(rows))


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
    render: bool = False,
    submission: leaderboard.Request | None = None,
) -> list[dict[str, Any]]:
    """Runs a sweep from its paths and returns the table's rows.

    default: the run that is evaluated where the sweep names none. out: None is `sweep` in the first run's folder. watch: go on as the
    runs save further checkpoints, until each has the last step of its config; a run may have none yet. render: see `run_sweep`.
    submission: leaderboard files are asked for.
    """
    world = load_world(config, sets)
    submissions = None if submission is None else leaderboard.prepare(world, sets, submission)
    paths = sweep.checkpoints or (str(default),)
    folder = out or find_run(paths[0])[0] / TABLE
    while True:
        found = _first_finds(paths, all_steps=all_steps or watch, early=watch)
        if not found:
            progress(f"waiting for the first checkpoint of {', '.join(map(str, paths))}; Ctrl-C ends this")
            time.sleep(_WATCH_EVERY_S)
            continue
        try:
            rows = run_sweep(world, sweep, checkpoints=found, out=folder, progress=progress, render=render, submissions=submissions)
        except CheckpointError:
            deleted = [c for c in found if not c.is_there]
            if not watch or not deleted:
                raise
            progress(f"deleted by its run before it was evaluated: {', '.join(c.name for c in deleted)}")
            continue
        unfinished = [path for path in paths if find_run(path)[1] is None and not _is_finished(find_run(path)[0], found)]
        if not watch or not unfinished:
            progress(f"tables and predictions: {folder}")
            return rows
        progress(f"waiting for further checkpoints of {', '.join(map(str, unfinished))}; Ctrl-C ends this, the same command goes on")
        while not set(_first_finds(paths, all_steps=True, early=True)) - set(found):
            time.sleep(_WATCH_EVERY_S)


def _first_finds(paths: Sequence[str | Path], *, all_steps: bool, early: bool) -> tuple[Checkpoint, ...]:
    """Returns the checkpoints that the first host finds: another may see a new one a little later or earlier."""
    mine = find_checkpoints(paths, all_steps=all_steps, early=early)
    told = json.dumps([(str(c.folder), c.step) for c in mine]).encode()
    return tuple(Checkpoint(Path(folder), step) for folder, step in json.loads(hosts.gather(told)[0]))


def _is_finished(folder: Path, found: Sequence[Checkpoint]) -> bool:
    """Whether the run's last step is among the checkpoints that were evaluated."""
    steps = [c.step for c in found if c.folder == folder.absolute()]
    return bool(steps) and max(steps) >= CheckpointManager(folder, read_only=True).config().steps


def decode_on_all_hosts(
    world: World, predictor: Predictor, examples: Examples, setting: DecodeSetting, closed: ClosedSet | None
) -> Decoded:
    """Returns the outputs of all examples, in order, every one decoded once: host h of n decodes examples h, h + n, ...

    A setting's scorer ranks on the host that decoded; with several hosts only the best hypothesis of each example comes back.
    """
    mine = own_share(examples)
    if not mine.examples:
        found = Decoded([], np.zeros(0))
    elif examples.task.scoring == "teacher_forced":
        found = Decoded(predictor.forced(mine), np.full(len(mine.examples), np.nan))
    else:
        found = predictor.decode(mine, setting, closed)
    if setting.scorer and examples.task.scoring == "free":
        found = ranked(mine, found, NamedScorer.load(setting.scorer), vocab=world.config.vocab, tokenizer=world.tokenizer)
    if hosts.count() == 1:
        return found
    own = {"scores": found.scores, "ranks": found.scores if found.rank_scores is None else found.rank_scores}
    ids, numbers = gather_shares(found.ids, own, total=len(examples.examples))
    return Decoded(ids, numbers["scores"], rank_scores=None if found.rank_scores is None else numbers["ranks"])


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

    def check(self, checkpoint: Checkpoint, sets: Sequence[EvalSetConfig]) -> None:
        """Raises ConfigError when a checkpoint's vocabulary is not that of the config the data is read with, or when its model lacks a part
        that `sets` need."""
        stored = CheckpointManager(checkpoint.folder, read_only=True).config(checkpoint.step)
        for problem in unreadable_sets(sets, stored.model):
            raise ConfigError(f"--checkpoint: {checkpoint.name}: {problem}")
        theirs, ours = (dataclasses.replace(v, path="") for v in (stored.vocab, self._config.vocab))
        if theirs != ours:
            raise ConfigError(f"--checkpoint: {checkpoint.name}: found the vocabulary {theirs}, expected {ours} as in --config")

    def predictor(self, checkpoint: Checkpoint) -> Predictor:
        """Returns the predictor with the checkpoint's parameters."""
        if self._last is None or self._last[0] != checkpoint:
            self._last = None  # the old parameters go before the new ones come
            manager = CheckpointManager(checkpoint.folder, read_only=True, base=self._config.init.checkpoint)
            abstract, stats, predictor = self._structure(manager.config(checkpoint.step).model)
            restored = manager.restore_params(abstract, stats, step=checkpoint.step)
            weights = restored.params, restored.stats
            if hosts.count() > 1:  # each host decodes its own share, on a device of its own
                weights = jax.tree.map(lambda leaf: leaf.addressable_data(0), weights)
            self._last = checkpoint, predictor.with_params(*weights)
        return self._last[1]


def _agreed(flags: list[bool]) -> list[bool]:
    """What the first host found: the disk of another may lag behind."""
    return [bool(flag) for flag in hosts.gather(bytes(flags))[0]]


def _submit(submissions: leaderboard.Submissions | None, out: Path, point: Point, progress: Callable[[str], None]) -> None:
    """Writes a point's leaderboard file, where one is asked for and its task has a format."""
    if submissions is not None and point.eval_set.name in submissions and hosts.is_first():
        if said := submissions.write_stored(point.eval_set.name, point_files(out, point)[1], results=out, name=point.file_name):
            progress(said)
