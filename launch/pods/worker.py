"""Runs on a machine of a cluster, called by the other command lines of this folder: starts a command, says how it is, ends it.

    python launch/pods/worker.py run    --folder=DIR -- launch/train.py ...   starts it so that it outlives the connection
    python launch/pods/worker.py state  --folder=DIR [--since=BYTE --of=W]    one line of JSON: running or ended, exit code, last error
    python launch/pods/worker.py log    --folder=DIR [--lines=N] [--follow]   the end of what it printed, each line with the worker's number
    python launch/pods/worker.py stop   --folder=DIR [--grace_s=S]            SIGTERM, on which a run saves, then SIGKILL
    python launch/pods/worker.py mapped --again=CODE -- launch/train.py ...   ends with CODE where the same command goes on (75, 77)
    python launch/pods/worker.py hold | task ...                              what `run`, and a Slurm script, call

Exit codes: 0, 2 a mistake told in one sentence; mapped, hold and task: those of the command.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ofa_jax.clusters import worker
from ofa_jax.clusters.flags import Parser, check_command, no_command, run_main, split_command
from ofa_jax.config.errors import ConfigError

_VERBS = ("run", "state", "log", "stop", "mapped", "hold", "task")


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    return run_main(argv, __doc__ or "", _act, interrupted="the command runs on")


def _act(words: list[str]) -> int:
    flags_words, command = split_command(words)
    parser = Parser("launch/pods/worker.py", _VERBS, "VERB --folder=DIR [-- COMMAND]")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--again", type=int, default=0)
    parser.add_argument("--since", type=int, default=0)
    parser.add_argument("--of", type=int, default=-1)
    parser.add_argument("--lines", type=int, default=50)
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--grace_s", type=float, default=60.0)
    flags = parser.parse_args(flags_words)
    if flags.lines < 1 or flags.since < 0 or flags.grace_s < 0:
        raise ConfigError(
            f"command line: found --lines={flags.lines} --since={flags.since} --grace_s={flags.grace_s:g}, expected 1, 0 and 0"
        )
    if flags.verb not in ("run", "mapped", "hold", "task"):
        no_command(command, flags.verb)
    if flags.verb == "mapped":
        if not 0 < flags.again < 256:
            raise ConfigError(f"--again: found {flags.again}, expected an exit code from 1 to 255")
        return worker.run_mapped(check_command(command), again=flags.again)
    if not flags.folder:
        raise ConfigError(
            f"--folder: found none, expected that of the pod, as in --folder=runs/pods/NAME; {flags.verb} keeps its files there"
        )
    if flags.verb == "task":
        return worker.watch_task(worker.Files(flags.folder / f"task_{os.environ.get('SLURM_PROCID', '0')}"), check_command(command))
    files, place = worker.Files(flags.folder), worker.find_place()
    if flags.verb == "hold":
        return worker.hold(files, check_command(command), place)
    if flags.verb == "run":
        holder = [sys.executable, str(Path(__file__).resolve()), "hold", f"--folder={flags.folder}", "--"]
        number = worker.start(files, check_command(command), holder=holder)
        print(f"worker {place.index} of {place.count}: started as process {number}, log in {files.log}")
    elif flags.verb == "state":
        print(worker.report(files, place, since=flags.since if flags.of == place.index else None).to_line())
    elif flags.verb == "stop":
        print(f"worker {place.index} of {place.count}: {worker.stop(files, grace_s=flags.grace_s)}")
    else:
        for line in worker.follow_log(files, lines=flags.lines, follow=flags.follow, prefix=f"worker {place.index}: "):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
