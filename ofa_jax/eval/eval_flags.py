"""The command line of `launch/eval.py`, but for `--reproduce` (`reproduce_flags`)."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NoReturn

from ofa_jax.config.decoding import GREEDY, SweepConfig, parse_setting
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import read_sweep

USAGE = "--config=FILE [--checkpoint=DIR] [--step=N] [--sets=a,b] [--no-report], or of a sweep or a published row (--help)"


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the flags of `argv` (its first element is the program) without those of the config. Raises ConfigError for any other."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected {USAGE}")

    parser = Parser(prog="launch/eval.py", allow_abbrev=False, add_help=False)
    parser.add_argument("--checkpoint", action="append", default=[])
    parser.add_argument("--step", type=int)
    parser.add_argument("--sets", default="")
    parser.add_argument("--decode", action="append", default=[])
    parser.add_argument("--sweep")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--all-steps", action="store_true")
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--no-report", action="store_true")
    parser.add_argument("--submission", nargs="?", const="")
    parser.add_argument("--reference", action="append", default=[])
    return parser.parse_args(argv[1:])


def sweep_of(flags: argparse.Namespace, sets: list[str]) -> SweepConfig | None:
    """Returns the sweep that the flags ask for, of the sets of these names, or None where it is the plain evaluation of one checkpoint.

    Raises ConfigError for a setting that cannot be read, and for flags that do not go together.
    """
    if not (flags.decode or flags.sweep or flags.all_steps or flags.watch or flags.render or flags.out or len(flags.checkpoint) > 1):
        return None
    if flags.step is not None:
        raise ConfigError("--step: found it in a sweep, expected --checkpoint=RUN/checkpoints/STEP")
    sweep = read_sweep(flags.sweep) if flags.sweep else SweepConfig((GREEDY,))
    given: dict[str, Any] = {"checkpoints": tuple(flags.checkpoint), "sets": tuple(sets), "decode": tuple(map(parse_setting, flags.decode))}
    return dataclasses.replace(sweep, **{field: value for field, value in given.items() if value})
