"""What the command lines of `launch/pods` share: the user's command after `--`, names, and mistakes in one sentence."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ofa_jax.clusters.plan import CommandError
from ofa_jax.config.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
# Of gcloud and of Kubernetes alike (RFC 1035); shorter than their 63, because both add numbers to it for slices and hosts.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
EXIT_MISTAKE = 2


class Parser(argparse.ArgumentParser):
    """Flags of one command line, by verb: `launch/pods/x.py VERB --flag=... -- COMMAND`."""

    def __init__(self, prog: str, verbs: Sequence[str], expected: str):
        super().__init__(prog=prog, allow_abbrev=False, add_help=False)
        self._expected = expected
        self.add_argument("verb", choices=verbs)
        self.add_argument("--dry_run", action="store_true")

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError with argparse's message and what is expected."""
        raise ConfigError(f"command line: {message}; expected {self._expected}")


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the words before `--` and those after it, which are the user's command."""
    words = list(argv)
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def check_command(command: Sequence[str], *, root: Path = ROOT) -> tuple[str, ...]:
    """Returns the user's command. Raises ConfigError where there is none, or none of this checkout's programs."""
    example = "-- launch/train.py --config=configs/ofa_large.py"
    if not command:
        raise ConfigError(f"command line: found no command, expected one of this checkout after two dashes, as in {example}")
    program = command[0]
    if not program.endswith(".py") or Path(program).is_absolute() or not (root / program).is_file():
        raise ConfigError(f"command line: found the command {program}, expected a program of this checkout, as in {example}")
    return tuple(command)


def no_command(command: Sequence[str], verb: str) -> None:
    """Raises ConfigError where a command follows a verb that takes none."""
    if command:
        raise ConfigError(f"command line: found the command {command[0]} after {verb}, expected none: only run and its like take one")


def check_name(text: str, flag: str) -> str:
    """Returns a name that gcloud and Kubernetes take. Raises ConfigError for another one."""
    if not text:
        raise ConfigError(f"--{flag}: found none, expected a name, as in --{flag}=ofa-large")
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"--{flag}: found {text!r}, expected at most 40 lower-case letters, digits and dashes, a letter first and no dash last"
        )
    return text


def check_given(text: str, flag: str, example: str) -> str:
    """Returns the value of a flag that must be given. Raises ConfigError where it is empty or has a space."""
    if not text:
        raise ConfigError(f"--{flag}: found none, expected one, as in --{flag}={example}")
    if any(character.isspace() for character in text):
        raise ConfigError(f"--{flag}: found {text!r}, expected a word without spaces, as in --{flag}={example}")
    return text


def run_main(argv: Sequence[str], doc: str, act: Callable[[list[str]], int], *, interrupted: str) -> int:
    """Runs `act` on the words after the program and returns the exit code: its own, 2 for a mistake told in one sentence, or the code of
    a cluster's program that failed. Prints `doc` for --help, `interrupted` for Ctrl-C."""
    words = list(argv[1:])
    before, _ = split_command(words)
    if "--help" in before:
        print(doc)
        return 0
    try:
        return act(words)
    except CommandError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.code
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
