"""Runs a command as a pod on this machine: `python launch/pods/local.py --processes=4 -- launch/train.py --config=configs/quickstart.py`.

Every process has CPU devices of its own, and the environment variables of one of several hosts; nothing else differs from a pod. Each line
of output has the number of its process before it.

  --processes=N   how many
  --devices=N     of each process (default 1)
  --port=N        of 127.0.0.1, where they meet (default: a free one)
  --log_dir=DIR   also writes what process N prints to DIR/process_N.log
  --wait_s=S      how long the others have to end by themselves once one has failed (default 120); then they are killed
  --dry_run       prints the commands, and runs nothing

Ctrl-C and SIGTERM go to all processes: training saves and stops. Exit codes: 0 all are done, 2 a mistake told in one sentence, else that of
the process that failed first (128 and the signal's number for one that was killed), whose last error is printed again at the end.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ofa_jax.clusters.local import LocalPod, check_pod, command_lines, free_port, run_pod
from ofa_jax.config.errors import ConfigError, UserError

EXIT_MISTAKE = 2
USAGE = "--processes=N [--devices=N] [--port=N] [--log_dir=DIR] [--wait_s=S] [--dry_run] -- COMMAND"


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    mark = argv.index("--") if "--" in argv else len(argv)
    own, command = argv[1:mark], argv[mark + 1 :]
    if "--help" in own:
        print(__doc__)
        return 0
    try:
        pod, dry_run = _parse(own, command)
        check_pod(pod)
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    if dry_run:
        print("\n".join(command_lines(pod, os.environ)))
        return 0
    return run_pod(pod, os.environ, say=functools.partial(print, flush=True))


def _parse(own: list[str], command: list[str]) -> tuple[LocalPod, bool]:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected {USAGE}")

    parser = Parser(prog="launch/pods/local.py", allow_abbrev=False, add_help=False)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--port", type=int)
    parser.add_argument("--log_dir", type=Path)
    parser.add_argument("--wait_s", type=float, default=120.0)
    parser.add_argument("--dry_run", action="store_true")
    flags = parser.parse_args(own)
    port = free_port() if flags.port is None else flags.port
    return LocalPod(tuple(command), flags.processes, port, flags.devices, flags.log_dir, flags.wait_s), flags.dry_run


if __name__ == "__main__":
    sys.exit(main(sys.argv))
