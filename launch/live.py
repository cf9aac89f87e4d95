"""Shows how a run goes, in the terminal: `python launch/live.py --workdir=runs/quickstart [--once] [--every_s=2]`.

Reads the files of the run's folder (metrics, heartbeats, lives, checkpoints, bad steps, rejects), so it works beside the run, after
it, and on any machine that sees the folder. --once prints one frame and ends; otherwise Ctrl-C does.
Exit codes: 0, 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.monitor.live import WIDTH, RunFiles, frame

_HOME, _CLEAR_LINE, _CLEAR_BELOW, _CLEAR = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[2J"


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    if "--help" in argv:
        print(__doc__)
        return 0
    try:
        flags = _parse(argv)
        run = RunFiles(flags.workdir)
        if flags.once:
            print(frame(run.look(), width=max(shutil.get_terminal_size((WIDTH, 50)).columns, 60)))
            return 0
        _refresh(run, flags.every_s)
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
    return 0


def _refresh(run: RunFiles, every_s: float) -> None:
    """Draws frame over frame without a flicker: each line is cleared where it ends."""
    sys.stdout.write(_CLEAR)
    while True:
        size = shutil.get_terminal_size((WIDTH, 50))
        rows = frame(run.look(), width=max(size.columns, 60)).split("\n")[: size.lines - 1]
        sys.stdout.write(_HOME + "".join(row + _CLEAR_LINE + "\n" for row in rows) + _CLEAR_BELOW)
        sys.stdout.flush()
        time.sleep(every_s)


def _parse(argv: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected --workdir=FOLDER [--once] [--every_s=S]")

    parser = Parser(prog="launch/live.py", allow_abbrev=False, add_help=False)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--every_s", type=float, default=2.0)
    flags = parser.parse_args(argv[1:])
    if flags.every_s <= 0:
        raise ConfigError(f"--every_s: found {flags.every_s:g}, expected more than 0")
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv))
