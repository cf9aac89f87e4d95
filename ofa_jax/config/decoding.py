"""Ways to decode, and sweeps over them: what `launch/eval.py` evaluates beside a run's own config."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from ofa_jax.config.errors import ConfigError, nearest
from ofa_jax.config.fields import field_types, parse

# What each method reads; a field it would not read is refused, so that nobody compares settings that are the same.
_SEARCH = ("beam", "max_len", "min_len", "lenpen", "no_repeat_ngram", "temperature", "normalise", "prompt", "scorer")
READS = {
    "greedy": ("max_len", "min_len"),
    "beam": (*_SEARCH, "answers"),
    "sample": (*_SEARCH, "top_k", "top_p", "seed"),
    "score": ("max_len", "answers", "prompt"),
}
METHODS = tuple(READS)


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
    # Closed set: a file of one label a line; "training", the answers of the set's training data; "task", those of the task; empty: none.
    answers: str = ""
    # source: the decoder reads the source before it answers (official `prev_output`); a task that was trained so does whatever this says.
    prompt: Literal["none", "source"] = "none"
    scorer: str = ""  # FILE.py:function that ranks the hypotheses instead of their probability (eval/rank.py); empty: none


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
        at = f"decode {setting.name}: "
        if names.count(setting.name) > 1:
            raise ConfigError(f"{at}found the name {names.count(setting.name)} times, expected names that differ")
        if not setting.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigError(f"{at}found the name {setting.name!r}, expected letters, digits, - _ and .")
        for task in setting.tasks:
            if task not in task_names:
                raise ConfigError(f"{at}tasks: found {task!r}; {nearest(task, task_names)}")
        check_setting(setting, at=at)


def check_setting(setting: DecodeSetting, *, at: str = "") -> None:
    """Raises ConfigError for a setting that cannot run; `at` is what the sentence begins with."""
    if setting.method not in METHODS:
        raise ConfigError(f"{at}method: found {setting.method!r}, expected one of {', '.join(METHODS)}")
    if setting.method == "score" and not setting.answers:
        raise ConfigError(f"{at}answers: found nothing, expected a file of labels or training: method score compares a closed set")
    for field in dataclasses.fields(setting):
        found = getattr(setting, field.name)
        if field.name not in ("name", "method", "tasks", *READS[setting.method]) and found != field.default:
            readers = " or ".join(method for method, names in READS.items() if field.name in names)
            raise ConfigError(
                f"{at}{field.name}: found {found!r} with method {setting.method}, which does not read it, expected it with {readers}"
            )
    if setting.answers not in ("", "training", "task") and not Path(setting.answers).is_file():
        raise ConfigError(f"{at}answers: found no file {setting.answers}, expected one label a line, training or task")
    for name in ("max_len", "min_len", "no_repeat_ngram", "top_k", "seed"):
        if getattr(setting, name) < 0:
            raise ConfigError(f"{at}{name}: found {getattr(setting, name)}, expected at least 0")
    ranges = {
        "beam": (setting.beam >= 1, "at least 1"),
        "min_len": (not setting.max_len or setting.min_len <= setting.max_len, f"at most max_len={setting.max_len}"),
        "temperature": (0 < setting.temperature < math.inf, "more than 0"),
        "lenpen": (math.isfinite(setting.lenpen), "a finite number"),
        "seed": (setting.seed < 1 << 32, f"at most {(1 << 32) - 1}"),
        "top_p": (0 <= setting.top_p <= 1, "0 (off) to 1"),
    }
    for name, (fits, expected) in ranges.items():
        if not fits:
            raise ConfigError(f"{at}{name}: found {getattr(setting, name)}, expected {expected}")
    if setting.beam == 1 and setting.method == "beam" and setting.temperature != 1:
        raise ConfigError(
            f"{at}temperature: found {setting.temperature} with one hypothesis, which it does not change, expected a beam of 2 or more, "
            "or method sample"
        )
    if setting.scorer and setting.beam == 1:
        raise ConfigError(f"{at}scorer: found it with a beam of 1, expected 2 hypotheses or more to rank")
