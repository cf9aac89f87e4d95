"""How a run ends: one of a few reasons, each with an exit code, one last line and a record in `<workdir>/lives_<host>.jsonl`.

A run has many lives: it is preempted, killed, started again. Whoever starts it (a scheduler, a shell loop) reads the exit code; whoever
looks after it reads the records, which also tell of a life that ended without a word.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ofa_jax.config.errors import CheckpointError, DataError, UserError


class Reason(NamedTuple):
    """Why a life of a run ended."""

    code: int  # of the process; those of sysexits.h where one fits
    means: str
    again: bool  # whether the same command goes on without anything being mended


REASONS = {
    "done": Reason(0, "all steps are made", False),
    "config": Reason(2, "a mistake in the command line or the config, told in one sentence", False),
    "data": Reason(65, "data that is missing, damaged or mostly unusable (EX_DATAERR)", False),
    "bug": Reason(70, "an error that nobody foresaw; its traceback is above (EX_SOFTWARE)", False),
    "oom": Reason(71, "out of memory, of the device or of the host (EX_OSERR)", False),
    "checkpoint": Reason(74, "a checkpoint, or another file of the run, that cannot be written or read (EX_IOERR)", False),
    "preempted": Reason(75, "stopped by a signal, with all steps saved (EX_TEMPFAIL)", True),
    "nan": Reason(76, "too many steps in a row with a loss or gradient that is not finite or far too large", False),
    "hang": Reason(77, "a step or another host that did not come back", True),
}


class DivergenceError(UserError):
    """Losses or gradients that are not finite, or far above the usual, for too many steps in a row."""


class HangError(UserError):
    """A step, or another process, beyond its deadline."""


_OF_ERRORS: tuple[tuple[type[BaseException], str], ...] = (
    (DivergenceError, "nan"),
    (HangError, "hang"),
    (DataError, "data"),
    (CheckpointError, "checkpoint"),
    (UserError, "config"),
    (MemoryError, "oom"),
)
_DEVICE_ERRORS = ("JaxRuntimeError", "XlaRuntimeError")  # by name: this side does not import JAX
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
_LOST_HOST = ("reset by peer", "closed by peer", "timed out", "Timed out")  # of a transfer between hosts, which Gloo makes on CPUs
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)


_told: list[Callable[[str, str], None]] = []


def on_end(listener: Callable[[str, str], None]) -> None:
    """Makes every end of this process known to `listener`, as (reason, last words), before it ends."""
    _told.append(listener)


def tell_end(reason: str, message: str = "") -> int:
    """Tells those that asked for it that this process ends, and returns the exit code."""
    for listener in _told:
        listener(reason, message)
    return REASONS[reason].code


def is_of_the_disk(error: BaseException) -> bool:
    """Returns whether a file could not be written because of its disk (full, over quota, read only, broken), where no traceback helps."""
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def reason_of(error: BaseException) -> str:
    """Returns the name in `REASONS` of what ended a run by an exception."""
    if "Gloo" in str(error) and any(words in str(error) for words in _LOST_HOST):
        return "hang"  # also where a save met it: no disk is to blame
    for kind, reason in _OF_ERRORS:
        if isinstance(error, kind):
            return reason
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & set(_DEVICE_ERRORS) and any(words in str(error) for words in _OUT_OF_MEMORY):
        return "oom"
    if isinstance(error, KeyboardInterrupt):
        return "preempted"
    if is_of_the_disk(error):
        return "checkpoint"
    return "bug"


@dataclasses.dataclass
class Life:
    """One life of a run on one host: from its start to its end. `step` is kept up to date by whoever trains."""

    step: int = 0
    _path: Path | None = None

    def begin(self, workdir: Path, *, host: int, facts: dict[str, Any]) -> str:
        """Notes the start, with `facts` (versions, devices, the command), and returns a sentence on how the life before ended, or "".

        Raises OSError when the folder cannot be written.
        """
        path = workdir / f"lives_{host}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        said = _last_words(path)
        # A line that a kill cut off; a disk that was full leaves the first one empty.
        if path.exists() and not (written := path.read_bytes()).endswith(b"\n") and written:
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
        self._path = path
        self._write({"event": "start", "pid": os.getpid(), **facts})
        return said

    @property
    def began(self) -> bool:
        """Whether the start was noted."""
        return self._path is not None

    def end(self, reason: str, message: str = "") -> int:
        """Notes the end and returns the exit code. Without a `begin` before, as with a mistake in the command line, nothing is noted. A
        disk that takes no note, which may be what ends the run, is told on stderr."""
        code = tell_end(reason, message)
        if self._path is not None:
            try:
                self._write({"event": "end", "reason": reason, "code": code, "step": self.step, "message": message})
            except OSError as error:
                print(f"the end of the run cannot be noted: {error}", file=sys.stderr, flush=True)
        return code

    def _write(self, record: dict[str, Any]) -> None:
        assert self._path is not None
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **record}, ensure_ascii=False) + "\n")


def end_as_hang(life: Life, said: str) -> None:
    """Ends the process from beside its main thread, which waits for something that does not come."""
    code = life.end("hang", said)
    print(f"ended: hang ({code}) at step {life.step}: {said}", file=sys.stderr, flush=True)
    os._exit(code)


def end_at_once(life: Life) -> None:
    """Makes SIGTERM and Ctrl-C end this process at once, with the code and the note of a preemption, until the training loop takes them
    over: before its first step there is nothing to save. Call in the main thread.

    No exception is raised: Orbax takes one that comes while it reads for damage of the checkpoint.
    """

    def end(number: int, frame: Any) -> None:
        said = f"{signal.Signals(number).name} while there was nothing to be saved"
        code = life.end("preempted", said)
        print(f"ended: preempted ({code}) at step {life.step}: {said}", file=sys.stderr, flush=True)
        os._exit(code)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _last_words(path: Path) -> str:
    """How the last life noted in `path` ended, as a sentence; "" where there was none."""
    if not path.exists():
        return ""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # a line that a kill cut off
    if not records:
        return ""
    last, lives = records[-1], sum(record["event"] == "start" for record in records)
    if last["event"] == "start":
        return (
            f"life {lives} of this run, begun {last['time']}, ended without a word: it was killed (for want of memory?), or its machine was"
        )
    return f"life {lives} of this run ended {last['time']} at step {last['step']}: {last['reason']}" + (
        f" ({last['message']})" if last["message"] else ""
    )
