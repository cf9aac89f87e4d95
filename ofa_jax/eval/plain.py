"""The plain evaluation of one checkpoint with its run's own config: results, predictions and the report in the run's folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ofa_jax.checkpoint.folders import find_run
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.decoding import GREEDY
from ofa_jax.config.errors import CheckpointError, ConfigError
from ofa_jax.config.schema import EvalSetConfig, RunConfig
from ofa_jax.eval import leaderboard
from ofa_jax.eval.points import Checkpoint, Point
from ofa_jax.eval.report import write_report
from ofa_jax.eval.runner import PREDICTIONS_FILE, evaluate, format_table, write_results
from ofa_jax.eval.ways import ways_of
from ofa_jax.eval.world import load_world
from ofa_jax.models import ofa
from ofa_jax.parallel import hosts


def named_checkpoint(checkpoint: str | None, default: Path, step: int | None) -> tuple[Path, int | None]:
    """Returns the run's folder and the step (None: the newest) that --checkpoint and --step name; without --checkpoint `default`.

    Raises ConfigError where they name different steps.
    """
    if checkpoint is None:
        return default, step
    folder, named = find_run(checkpoint)
    if step is not None and named not in (None, step):
        raise ConfigError(f"--step: found {step}, expected {named} as in --checkpoint={checkpoint}, or neither")
    return folder, step if named is None else named


@dataclasses.dataclass(frozen=True)
class Restored:
    """The weights of a checkpoint, for a `Predictor`: of each host on a device of its own, where there are several."""

    graphdef: Any
    params: Any
    stats: Any
    step: int
    averaged: bool  # params are the average of the weights
    num_params: int


def open_checkpoints(config: RunConfig, folder: Path) -> CheckpointManager:
    """Returns the checkpoints of the run in `folder`, to be read. Raises CheckpointError where there is no complete one."""
    manager = CheckpointManager(folder, read_only=True, base=config.init.checkpoint)
    if not manager.steps():
        raise CheckpointError(
            f"{manager.directory}: found no complete checkpoint; run python launch/train.py with the same --config first, or name another "
            "run's folder with --checkpoint"
        )
    return manager


def restore(config: RunConfig, manager: CheckpointManager, step: int | None) -> Restored:
    """Returns the weights of checkpoint `step` (None: the newest) for the model of `config`, the average where there is one. Raises
    CheckpointError where it is of another model."""
    graphdef, abstract = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, jax.random.key(0), precision=config.precision))
    abstract_stats = jax.eval_shape(lambda: ofa.init_stats(config.model, precision=config.precision))
    restored = manager.restore_params(abstract, abstract_stats, step=step)
    weights = restored.params, restored.stats
    if hosts.count() > 1:  # each host decodes its own share, on a device of its own
        weights = jax.tree.map(lambda leaf: leaf.addressable_data(0), weights)
    return Restored(graphdef, *weights, restored.step, restored.averaged, ofa.num_params(abstract, config.vocab))


def evaluate_checkpoint(
    config: RunConfig,
    sets: Sequence[EvalSetConfig],
    *,
    folder: Path,
    step: int | None,
    with_report: bool,
    start: float,
    submission: leaderboard.Request | None = None,
) -> str:
    """Evaluates a run's checkpoint (`step` None: the newest) on `sets`, writes into `folder`, and returns the table and what it cost.

    start: `time.perf_counter()` from which the seconds count. submission: leaderboard files are written too, named as those of the
    greedy points of a sweep. On several hosts all call it, the first writes, and the others return "".

    Raises CheckpointError where the run has no complete checkpoint, and as `leaderboard.prepare`.
    """
    manager = open_checkpoints(config, folder)
    world = load_world(config, sets)
    ways = ways_of(world, sets)
    submissions = None if submission is None else leaderboard.prepare(world, sets, submission)
    restored = restore(config, manager, step)
    evaluation = evaluate(
        config,
        graphdef=restored.graphdef,
        params=restored.params,
        stats=restored.stats,
        tokenizer=world.tokenizer,
        build_row=world.build_row,
        open_source=world.open_source,
        sets=sets,
        ways=ways,
        with_pictures=with_report,
    )
    if not hosts.is_first():
        return ""
    write_results(evaluation, folder)
    seconds = time.perf_counter() - start
    checkpoint = f"step {restored.step:,}" + (" (averaged weights)" if restored.averaged else "")
    said = [format_table(evaluation.results), f"{checkpoint}; {len(evaluation.predictions):,} examples in {seconds:.0f} s"]
    for eval_set in sets:
        if submissions is not None and eval_set.name in submissions:
            lines = [line for line in evaluation.predictions if line["set"] == eval_set.name]
            name = Point(Checkpoint(folder.absolute(), restored.step), eval_set, GREEDY).file_name
            said.append(submissions.write(eval_set.name, lines, source=str(folder / PREDICTIONS_FILE), results=folder, name=name))
    if with_report:
        facts = {
            "checkpoint": checkpoint,
            "parameters": f"{restored.num_params:,}",
            "evaluated in": f"{seconds:.0f} s on {jax.devices()[0].device_kind}",
        }
        said.append(f"report: {write_report(folder, config, facts=facts)}")
    return "\n".join(said)
