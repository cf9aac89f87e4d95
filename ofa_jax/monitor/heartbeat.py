"""The hang watch: says of every host what it is at and for how long, and ends a run whose host or step does not come back.

A step that waits for a lost host waits for ever, in C++, where no exception reaches it. So a thread watches the loop from beside: it
writes a heartbeat file, and beyond the deadline it dumps the stack of every thread, names the host that is behind the others, and ends
the process with the exit code of a hang. The others come to the same end by their own watches, as they wait for the same step.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

WRITE_EVERY_S = 5.0
_APART_S = 0.2  # between two writes: a phase is written down when it begins, but no more often
_SHORT = ("data", "step")  # phases that the deadline is for
PATIENCE = 8  # times the deadline of a step that compiling, evaluating, saving and restoring may take
_JOIN = 3  # times the deadline that joining may take: the roll call of the hosts has the same deadline, and says more


@dataclasses.dataclass(frozen=True)
class Beat:
    """What one host was last heard of to be at."""

    host: int
    step: int
    phase: str
    since: float  # seconds of the Unix epoch at which the phase began
    written: float  # and at which this was written
    name: str = ""  # of its machine


def read_beats(workdir: Path) -> list[Beat]:
    """Returns the heartbeats of all hosts that write into `workdir`, by host; half-written files are left out."""
    beats = []
    for path in sorted(workdir.glob("heartbeat_*.json")):
        try:
            beats.append(Beat(**json.loads(path.read_text(encoding="utf-8"))))
        except (json.JSONDecodeError, TypeError):
            continue  # of another version, or being written
    return sorted(beats, key=lambda beat: beat.host)


def slowest(beats: list[Beat], *, now: float) -> str:
    """Returns a sentence that names the host behind the others: the fewest steps, then the longest silence; "" for none."""
    if not beats:
        return ""
    last = min(beats, key=lambda beat: (beat.step, beat.written))
    since, silent = now - last.since, now - last.written
    named = f" ({last.name})" if last.name else ""
    return f"host {last.host}{named} is last: step {last.step}, {last.phase} since {since:.0f} s, last heard of {silent:.0f} s ago"


def thread_stacks() -> str:
    """Returns the stack of every Python thread of this process by the thread's name, the main thread's first, outermost call first.

    (faulthandler starts with the newest thread and stops after a hundred, and so leaves out the very one that hangs.)
    """
    main, frames = threading.main_thread().ident, sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident in sorted(frames, key=lambda ident: (ident != main, ident)):
        parts.append(f"thread {names.get(ident, 'of another library')} ({ident:#x}):\n" + "".join(traceback.format_stack(frames[ident])))
    return "\n".join(parts)


class Heartbeat:
    """Watches one process. `enter` is called by the loop at the start of every phase; all else happens in a thread of its own."""

    def __init__(
        self,
        workdir: Path,
        *,
        host: int,
        num_hosts: int = 1,
        deadline_s: float,
        on_hang: Callable[[str], None],
        write_every_s: float = WRITE_EVERY_S,
    ):
        """Starts the watch, in the phase "join": this host waits for the others.

        deadline_s: how long a step, and waiting for a batch, may take; joining three times, other phases `PATIENCE` times as long; 0:
        heartbeats alone.
        on_hang: called in the watching thread with a sentence, after the stacks were written to `hang_<host>.txt` and to stderr; it is
        expected to end the process.
        """
        self._workdir, self._host, self._num_hosts = workdir, host, num_hosts
        self._deadline_s, self._on_hang, self._name = deadline_s, on_hang, socket.gethostname()
        self._every_s = min(write_every_s, deadline_s / 4) if deadline_s else write_every_s
        self._state = (0, "join", time.monotonic(), time.time())  # replaced whole: no lock is needed
        self._stopping = threading.Event()
        self._changed = threading.Event()
        workdir.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def enter(self, step: int, phase: str) -> None:
        """Notes that the loop begins `phase` with `step` steps made. The file says so within 0.2 s, but of steps and the batches between
        them, which change many times a second, only now and then."""
        before, self._state = self._state[1], (step, phase, time.monotonic(), time.time())
        if (before, phase) not in (("data", "step"), ("step", "data")):
            self._changed.set()

    def close(self) -> None:
        """Ends the watch and removes the heartbeat file."""
        self._stopping.set()
        self._changed.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self._workdir / f"heartbeat_{self._host}.json"

    def _watch(self) -> None:
        while True:
            self._changed.clear()  # before the state is read: a change that comes in between is written by the next turn
            step, phase, began, since = self._state
            self._write(Beat(self._host, step, phase, since, time.time(), self._name))
            limit = self._deadline_s * (1 if phase in _SHORT else _JOIN if phase == "join" else PATIENCE)
            took = time.monotonic() - began
            if limit and took > limit:
                self._report(step, phase, took, limit)
                return
            apart_s = min(_APART_S, self._every_s)
            if self._stopping.wait(apart_s):
                return
            self._changed.wait(self._every_s - apart_s)

    def _write(self, beat: Beat) -> None:
        partial = self._path.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(dataclasses.asdict(beat)), encoding="utf-8")
            os.replace(partial, self._path)
        except OSError as error:  # a full disk must not end the run: what writes checkpoints says so better
            print(f"heartbeat {self._path} cannot be written: {error}", file=sys.stderr)

    def _report(self, step: int, phase: str, took: float, limit: float) -> None:
        path = self._workdir / f"hang_{self._host}.txt"
        stacks = thread_stacks()
        print(stacks, file=sys.stderr)
        try:
            path.write_text(stacks, encoding="utf-8")
        except OSError as error:  # the disk may be what hangs the run; it ends all the same
            print(f"{path} cannot be written: {error}", file=sys.stderr)
        now = time.time()
        beats = read_beats(self._workdir)
        behind = slowest(beats, now=now)
        if phase == "join":
            here = {beat.host for beat in beats if now - beat.written < 3 * WRITE_EVERY_S}
            missing = [str(host) for host in range(self._num_hosts) if host not in here]
            behind = f"missing of {self._num_hosts} hosts, or without a share of {self._workdir}: {', '.join(missing) or 'none'}"
        if self._host == 0 and self._num_hosts > 1:  # JAX ends the others, stacks or not, when the first is gone
            time.sleep(2 * self._every_s)
        self._on_hang(
            f"host {self._host}: phase {phase!r} after step {step} has lasted {took:.0f} s, expected at most {limit:.0f} s; stacks of all "
            f"threads are in {path}; {behind}"
        )
