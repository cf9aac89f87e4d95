"""Says what the time of a profiler trace went into: `python launch/traces.py runs/quickstart/traces/step_100 [--top=15]`.

A running process makes a trace after `kill -USR1 PID`, all processes after `touch runs/quickstart/trace_please` or at
`--config.monitor.trace_step=N`. Needs no network. Exit codes: 0, 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.monitor.traces import table, trace_files


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    if "--help" in argv:
        print(__doc__)
        return 0
    try:
        flags = _parse(argv)
        for path in trace_files(flags.folder):
            print(table(path, top=flags.top))
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected FOLDER [--top=15]")

    parser = Parser(prog="launch/traces.py", allow_abbrev=False, add_help=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--top", type=int, default=15)
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
