"""The command line of `launch/eval.py --reproduce`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import NoReturn

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import split_config
from ofa_jax.eval.leaderboard import Request, request_of
from ofa_jax.eval.pinned import FREE, Pinned, pin, wanted_digest

FLAG, LIST = "--reproduce", "list"
_USAGE = f"only --checkpoint, --step, --digest, --data, --submission, --reference and --config.LEAF of {', '.join(FREE)}"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a command line asks for."""

    pinned: Pinned
    checkpoint: str | None  # a run's folder or one checkpoint; None: the config's own run
    step: int | None
    digest: tuple[str, str]  # what the checkpoint's must begin with, and who says so; empty: any
    submission: Request  # of a row whose labels are not public


def read(argv: Sequence[str]) -> Asked | None:
    """Returns what `argv` (its first element is the program) asks for, None for the list of the rows.

    Raises ConfigError for flags that a row pins or that there are not, and as `pin` and `wanted_digest`.
    """
    spec, overrides, rest = split_config(argv)

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected with {FLAG} {_USAGE}")

    parser = Parser(prog="launch/eval.py", allow_abbrev=False, add_help=False)
    parser.add_argument(FLAG, required=True)
    parser.add_argument("--checkpoint", action="append", default=[])
    parser.add_argument("--step", type=int)
    parser.add_argument("--digest", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--submission", nargs="?", const="")
    parser.add_argument("--reference", action="append", default=[])
    flags, others = parser.parse_known_args(rest[1:])
    if flags.reproduce == LIST:
        return None
    at = f"{FLAG}={flags.reproduce}"
    if spec is not None:
        raise ConfigError(f"--config={spec}: found it with {at}, which names its config itself, expected {_USAGE}")
    if others:
        raise ConfigError(
            f"{others[0]}: found it with {at}, which pins config, set, prompt, picture size, decoding and metric, expected {_USAGE}"
        )
    if len(flags.checkpoint) > 1:
        raise ConfigError(f"--checkpoint: found {len(flags.checkpoint)} of them with {at}, expected one")
    if flags.data:
        overrides = [*overrides, ("data.dir", flags.data)]
    pinned = pin(flags.reproduce, overrides)
    sends = flags.submission is not None or bool(flags.reference)
    if sends and (not pinned.row.leaderboard or pinned.is_debug):
        raise ConfigError(f"--submission: found it with {at}, whose labels are there, expected it with a set that a leaderboard scores")
    request = request_of(flags.submission or "", flags.reference)
    assert request is not None  # there is one where --submission is
    checkpoint = flags.checkpoint[0] if flags.checkpoint else None
    return Asked(pinned, checkpoint, flags.step, wanted_digest(pinned, flags.digest), request)
