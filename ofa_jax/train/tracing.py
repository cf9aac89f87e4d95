"""Profiler traces on demand: after a step that the config names, after SIGUSR1, or after a file `trace_please` in the run's folder.

While no trace is asked for, a step costs a comparison, and once in a second a look for the file. A trace begins where the loop turns to a
new batch and ends when its last step is known to be done, without a wait of its own: the loop reads the numbers of a step while the next
one runs. Writing it takes a second or more, in which nothing is trained.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ofa_jax.parallel import hosts
from ofa_jax.train.hooks import Hook

STEPS = 3  # that a trace has whole
ASKED = "trace_please"  # the file: made by whoever wants a trace, deleted when it begins
_LOOK_EVERY_S = 1.0


class TraceOnDemand(Hook):
    """Writes `<workdir>/traces/step_<n>` (with several processes `.../host_<i>` below it), n the steps made before the trace.

    A signal asks the process that gets it alone; the file and `at_step` ask all that see them. It holds what the profiler writes for xprof
    and TensorBoard, and `perfetto_trace.json.gz` (`monitor/traces` reads it).
    """

    def __init__(self, workdir: Path, *, at_step: int = 0, say: Callable[[str], None] = lambda line: print(line, flush=True)):
        """at_step: steps made before a trace begins; 0: none without being asked. The handler of SIGUSR1 is there from now to `close`."""
        self._workdir, self._at_step, self._say = workdir, at_step, say
        self._asked, self._looked, self._compiled = False, time.monotonic(), False
        self._ends_at = 0  # steps made when the trace under way is whole; 0: none is
        self._folder = workdir
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            self._before = signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        del number, frame
        self._asked = True

    def phase(self, step: int, name: str) -> None:
        if name in ("save", "evaluate") or (name == "data" and self._ends_at and step >= self._ends_at):
            self._stop()  # what is not a step would hide the steps
        if name == "data" and not self._ends_at and self._compiled and self._is_wanted(step):
            self._start(step)
        self._compiled |= name == "compile"

    def rewind(self, step: int, *, data_step: int) -> None:
        self._stop()

    def close(self) -> None:
        self._stop()
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)

    def _is_wanted(self, step: int) -> bool:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            self._asked |= (self._workdir / ASKED).exists()
        return self._asked or (0 < self._at_step <= step)

    def _start(self, step: int) -> None:
        self._asked, self._at_step, self._ends_at = False, 0, step + STEPS + 1
        (self._workdir / ASKED).unlink(missing_ok=True)
        self._folder = self._workdir / "traces" / f"step_{step}"
        if hosts.count() > 1:
            self._folder /= f"host_{hosts.index()}"
        jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)

    def _stop(self) -> None:
        if self._ends_at:
            self._ends_at = 0
            jax.profiler.stop_trace()
            self._say(f"trace: {self._folder}; `python launch/traces.py {self._folder}` says what the time went into")
