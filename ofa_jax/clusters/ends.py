"""How the processes of a run ended, as one exit code and as the lines that a person has to read.

Where one host fails, the others do too, some seconds later and for another reason: they lose the connection, they are stopped, or their
hang watch ends them (`monitor/exits.py`). What has to be mended is the code of the first kind, and it is the one that is passed on.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

from ofa_jax.monitor.exits import REASONS

AGAIN = tuple(sorted(reason.code for reason in REASONS.values() if reason.again))  # the same command goes on
# Ended by a signal, as a shell numbers it: JAX aborts a process whose coordinator is lost, schedulers terminate and kill.
KILLED = tuple(128 + number for number in (signal.SIGABRT, signal.SIGKILL, signal.SIGTERM))
PREEMPTED = REASONS["preempted"].code

_MOST_LINES = 60  # from the end of a log: what is further up did not end it
_FEW_LINES = 5
_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b\s*(:|$)")
_ENDED = re.compile(r"ended: \w+ \(\d+\)|stopped by a signal at step \d+")


def judge(codes: Iterable[int]) -> int:
    """Returns the exit code of a run from those of its processes: the first that asks for something to be mended, else one after which
    the same command goes on, else that of a process that was killed, else 0."""
    codes = list(codes)
    for group in ([code for code in codes if code not in (0, *AGAIN, *KILLED)], AGAIN, KILLED):
        for code in group:
            if code in codes:
                return code
    return 0


def goes_on(code: int) -> bool:
    """Returns whether the same command goes on after this exit code of a run, without anything being mended."""
    return code in AGAIN or code in KILLED


def describe(code: int) -> str:
    """Returns what an exit code means, as `exit code 70 (bug: an error that ...)`."""
    for name, reason in REASONS.items():
        if reason.code == code:
            return f"exit code {code} ({name}: {reason.means})"
    if code > 128:
        names = {int(number): number.name for number in signal.Signals}
        return f"exit code {code} (killed by {names.get(code - 128, f'signal {code - 128}')})"
    return f"exit code {code}"


def shell_code(returncode: int) -> int:
    """Returns the exit code of a process as a shell numbers it, from Python's, which is negative for a signal."""
    return returncode if returncode >= 0 else 128 - returncode


def last_error(log: str) -> list[str]:
    """Returns the lines of a log's end that say what ended it: the last line of an exception and how the run says it ended; where there
    are none, the last lines."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()][-_MOST_LINES:]
    found = {}
    for pattern in (_ERROR, _ENDED):
        if places := [number for number, line in enumerate(lines) if pattern.match(line)]:
            found[places[-1]] = lines[places[-1]]
    return [found[number] for number in sorted(found)] or lines[-_FEW_LINES:]
