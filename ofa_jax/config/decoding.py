"""Ways to decode, and sweeps over them: what `launch/eval.py` evaluates beside a run's own config."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from ofa_jax.config.errors import ConfigError, nearest
from ofa_jax.config.fields import field_types, parse

METHODS = ("greedy", "beam", "sample", "score")


@dataclasses.dataclass(frozen=True)
class DecodeSetting:
    """One way to decode. The defaults of a beam search are those of the official generator, but for the lengths."""

    name: str
    method: Literal["greedy", "beam", "sample", "score"] = "greedy"  # score: every answer of a closed set by its probability
    tasks: tuple[str, ...] = ()  # the tasks it is for; none named: all that it can run
    beam: int = 5  # hypotheses of a beam search, draws of sampling
    max_len: int = 0  # tokens without EOS; 0: the target length of the set's block. A box has four ids whatever this says
    min_len: int = 1
    lenpen: float = 1.0
    no_repeat_ngram: int = 0
    temperature: float = 1.0
    normalise: bool = True  # scores of hypotheses are divided by length ** lenpen
    top_k: int = 0  # of sampling
    top_p: float = 0.0
    seed: int = 0
    answers: str = ""  # closed set: a file of one label a line, or "training", the answers of the set's training data; empty: none
    prompt: Literal["none", "source"] = "none"  # source: the decoder reads the source before it answers (official `prev_output`)


GREEDY = DecodeSetting("greedy")
FORCED = DecodeSetting("forced")  # stands beside the results of teacher-forced tasks, which no setting changes


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Checkpoints times ways to decode times sets; every one of them that fits together is a point of the sweep."""

    decode: tuple[DecodeSetting, ...]
    checkpoints: tuple[str, ...] = ()  # runs' folders, their checkpoints folders or single checkpoints; empty: the config's own run
    sets: tuple[str, ...] = ()  # names of `eval.sets`; empty: all


def parse_setting(text: str) -> DecodeSetting:
    """Returns the setting that `NAME[:METHOD][,field=value ...]` writes: "beam", "wide:beam,beam=20,lenpen=0.7", "vqa:score,answers=a.txt".

    Without a method the name is one. Raises ConfigError naming the field, what was found and what was expected.
    """
    head, *fields = text.split(",")
    name, _, method = head.partition(":")
    setting = DecodeSetting(name, method=parse(method or name, field_types(DecodeSetting)["method"], path=f"--decode={text}: method"))
    kinds = {key: kind for key, kind in field_types(DecodeSetting).items() if key not in ("name", "method")}
    for field in fields:
        key, equals, value = field.partition("=")
        if key not in kinds or not equals:
            raise ConfigError(f"--decode={text}: found {field!r}, expected field=value; {nearest(key, kinds)}")
        value = value.replace("+", ",") if key == "tasks" else value
        setting = dataclasses.replace(setting, **{key: parse(value, kinds[key], path=f"--decode={text}: {key}")})
    return setting


def check_settings(settings: tuple[DecodeSetting, ...], *, task_names: tuple[str, ...]) -> None:
    """Raises ConfigError for settings that cannot run or cannot be told apart; `task_names` are those that `tasks` may hold."""
    names = [setting.name for setting in settings]
    for setting in settings:
        at = f"decode {setting.name}"
        if names.count(setting.name) > 1:
            raise ConfigError(f"{at}: found the name {names.count(setting.name)} times, expected names that differ")
        if not setting.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigError(f"{at}: found the name {setting.name!r}, expected letters, digits, - _ and .")
        if setting.method not in METHODS:
            raise ConfigError(f"{at}: method: found {setting.method!r}, expected one of {', '.join(METHODS)}")
        for task in setting.tasks:
            if task not in task_names:
                raise ConfigError(f"{at}: tasks: found {task!r}; {nearest(task, task_names)}")
        if setting.method == "score" and not setting.answers:
            raise ConfigError(f"{at}: answers: found nothing, expected a file of labels or training: method score compares a closed set")
        if setting.answers and setting.method in ("greedy", "sample"):
            raise ConfigError(
                f"{at}: answers: found {setting.answers!r}, expected none with method {setting.method}; beam and score take them"
            )
        if setting.answers not in ("", "training") and not Path(setting.answers).is_file():
            raise ConfigError(f"{at}: answers: found no file {setting.answers}, expected one label a line, or training")
        if setting.prompt == "source" and setting.method == "greedy":
            raise ConfigError(f"{at}: prompt: found source, expected none with method greedy; beam, sample and score take it")
        if (setting.top_k or setting.top_p) and setting.method != "sample":
            raise ConfigError(f"{at}: top_k and top_p: found {setting.top_k} and {setting.top_p}, expected 0 with method {setting.method}")
        for field in ("max_len", "min_len", "no_repeat_ngram", "top_k", "seed"):
            if getattr(setting, field) < 0:
                raise ConfigError(f"{at}: {field}: found {getattr(setting, field)}, expected at least 0")
        if setting.beam < 1:
            raise ConfigError(f"{at}: beam: found {setting.beam}, expected at least 1")
        if setting.max_len and setting.min_len > setting.max_len:
            raise ConfigError(f"{at}: min_len: found {setting.min_len}, expected at most max_len={setting.max_len}")
        if not setting.temperature > 0:
            raise ConfigError(f"{at}: temperature: found {setting.temperature}, expected more than 0")
        if not 0 <= setting.top_p <= 1:
            raise ConfigError(f"{at}: top_p: found {setting.top_p}, expected 0 (off) to 1")
