"""How each set of a config is decoded where nobody says otherwise (`eval.decode`), and the closed sets that settings name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ofa_jax.config.decoding import GREEDY, DecodeSetting, check_settings, parse_setting
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import EvalSetConfig, RunConfig
from ofa_jax.decode.candidates import candidates
from ofa_jax.decode.constraints import Members
from ofa_jax.eval.collect import block_for, task_of
from ofa_jax.eval.predict import ClosedSet
from ofa_jax.eval.runner import Way
from ofa_jax.eval.world import World
from ofa_jax.tasks.table import TASK_NAMES
from ofa_jax.vocab.trie import build_trie

TASK_ANSWERS = "task"  # of `DecodeSetting.answers`: those that the task has


def settings_of(config: RunConfig) -> tuple[DecodeSetting, ...]:
    """Returns the checked settings that `eval.decode` writes. Raises ConfigError for what cannot be read or run."""
    settings = tuple(parse_setting(text) for text in config.eval.decode)
    check_settings(settings, task_names=TASK_NAMES)
    return settings


def ways_of(world: World, sets: Sequence[EvalSetConfig]) -> Mapping[str, Way]:
    """Returns by set the first setting of `eval.decode` that is for its task, with its closed set; greedy where none is.

    Teacher-forced texts have none; codes, which are generated beside, only one that names their task. Raises ConfigError for settings that
    cannot run, and as `closed_set`.
    """
    settings = settings_of(world.config)
    ways: dict[str, Way] = {}
    for eval_set in sets:
        task = task_of(eval_set)
        fitting = [s for s in settings if (not s.tasks or task.name in s.tasks) and (not s.answers or task.output == "text")]
        setting = fitting[0] if fitting else GREEDY
        if task.output == "codes":  # generated beside being teacher-forced, by what names the task
            named = [s for s in settings if task.name in s.tasks]
            ways |= {eval_set.name: (named[0], None)} if named else {}
        elif task.scoring == "free":
            ways[eval_set.name] = setting, closed_set(world, eval_set, setting) if setting.answers else None
    return ways


def closed_set(world: World, eval_set: EvalSetConfig, setting: DecodeSetting) -> ClosedSet:
    """Returns the compiled answers of a setting for a set, each written as targets are: with a leading space.

    Raises ConfigError for an empty set, an empty label, one given twice, or one longer than the outputs may be.
    """
    where = setting.answers if setting.answers != "training" else f"training answers of {eval_set.dataset}"
    task = task_of(eval_set)
    if setting.answers == TASK_ANSWERS:
        if not task.answers:
            raise ConfigError(f"decode {setting.name}: answers: found task for {task.name}, which has none of its own, expected a file")
        labels = list(task.answers)
    elif setting.answers == "training":
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
    block = block_for(world.config, eval_set)[1]
    limit = setting.max_len or block.target_len
    longest = max(range(len(labels)), key=lambda i: len(sequences[i]))
    if len(sequences[longest]) > limit:
        raise ConfigError(
            f"decode {setting.name}: answers: {where}: found {labels[longest]!r} of {len(sequences[longest])} tokens, expected at most "
            f"{limit}, the length of outputs (max_len changes it)"
        )
    return ClosedSet(tuple(labels), sequences, Members.of(build_trie(sequences)), candidates(sequences))
