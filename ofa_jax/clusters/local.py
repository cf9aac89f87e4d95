"""A pod on one machine: several processes of one command, each with CPU devices of its own. What they run is what a pod's hosts run; only
the environment variables differ, which are those of the plain environment (`parallel/cluster.py`)."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from ofa_jax.config.errors import ConfigError
from ofa_jax.monitor.exits import REASONS
from ofa_jax.parallel.cluster import VARIABLES

ADDRESS = "127.0.0.1"  # nothing of a local pod can be reached from another machine
_TOGETHER_S = 2.0  # ends so close to each other are one event: those who lost a host end right after it
_DEVICES_FLAG = "--xla_force_host_platform_device_count"
_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")  # begins the line that says what went wrong
_LAST_LINES = 5  # of output, in which it is looked for
_PATIENCE = 3  # Ctrl-C so often ends all at once


@dataclasses.dataclass(frozen=True)
class LocalPod:
    """What is started, and how."""

    command: tuple[str, ...]  # of every process
    processes: int
    port: int  # of the coordinator, on 127.0.0.1
    devices: int = 1  # of each process
    log_dir: Path | None = None  # for `process_<index>.log`: what each one printed
    wait_s: float = 120.0  # that the others have to end by themselves once one has failed


def free_port() -> int:
    """Returns a port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def check_pod(pod: LocalPod) -> None:
    """Raises `ConfigError` for flags that cannot be, a command that is not there, a port in use or a folder that cannot be made."""
    for flag, found, fits, expected in (
        ("processes", pod.processes, pod.processes >= 1, "1 or more"),
        ("devices", pod.devices, pod.devices >= 1, "1 or more"),
        ("port", pod.port, 0 < pod.port < 2**16, "1 to 65535"),
        ("wait_s", pod.wait_s, pod.wait_s > 0, "more than 0"),
    ):
        if not fits:
            raise ConfigError(f"command line: --{flag}: found {found:g}, expected {expected}")
    if not pod.command:
        raise ConfigError("command line: found no command, expected it behind --, as -- launch/train.py --config=configs/quickstart.py")
    if pod.command[0].endswith(".py") and not Path(pod.command[0]).is_file():
        raise ConfigError(f"command line: found no file {pod.command[0]}, expected a program behind --, as launch/train.py")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, pod.port))
        except OSError as error:
            raise ConfigError(
                f"command line: --port: found {pod.port} in use ({error.strerror}), expected a free one: give another, or none for any, or "
                f"end the program that holds it (ss -ltnp 'sport = :{pod.port}' names it)"
            ) from error
    if pod.log_dir is not None:
        try:
            pod.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"command line: --log_dir: {pod.log_dir} cannot be made ({error.strerror}), expected a folder") from error


def variables(pod: LocalPod, index: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables of process `index` that differ from those of `environ`."""
    flags = [flag for flag in environ.get("XLA_FLAGS", "").split() if not flag.startswith(_DEVICES_FLAG)]
    return {
        "JAX_COORDINATOR_ADDRESS": f"{ADDRESS}:{pod.port}",
        "JAX_COORDINATOR_BIND_ADDRESS": f"{ADDRESS}:{pod.port}",
        "JAX_NUM_PROCESSES": str(pod.processes),
        "JAX_PROCESS_ID": str(index),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([*flags, f"{_DEVICES_FLAG}={pod.devices}"]),
    }


def arguments(pod: LocalPod) -> list[str]:
    """Returns the command line of each process: a Python file is run by this Python."""
    return [sys.executable, *pod.command] if pod.command[0].endswith(".py") else list(pod.command)


def command_lines(pod: LocalPod, environ: Mapping[str, str]) -> list[str]:
    """Returns what is run, one line a process, as a shell would take it."""
    lines = []
    for index in range(pod.processes):
        more = variables(pod, index, environ)
        unset = [word for name in VARIABLES if name in environ and name not in more for word in ("-u", name)]
        words = ["env", *unset, *(f"{name}={value}" for name, value in more.items()), *arguments(pod)]
        lines.append(shlex.join(words))
    return lines


def _die_with_parent() -> None:
    """Runs in the child: a pod whose terminal is gone leaves no processes behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _Process:
    """One process, its output being read, and when it ended."""

    def __init__(self, pod: LocalPod, index: int, environ: Mapping[str, str], say: Callable[[str], None]):
        kept = {name: value for name, value in environ.items() if name not in VARIABLES}
        self.index, self._say = index, say
        self.code: int | None = None  # as a shell has it: 128 and the signal's number for one that was killed
        self.ended = 0.0
        self.last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)  # that are not empty
        self._log: IO[str] | None = None
        if pod.log_dir is not None:
            self._log = (pod.log_dir / f"process_{index}.log").open("w", encoding="utf-8")
        self.popen = subprocess.Popen(
            arguments(pod),
            env={**kept, **variables(pod, index, environ), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C comes from us alone, once
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        self.reader = threading.Thread(target=self._read, name=f"output of {index}", daemon=True)
        self.waiter = threading.Thread(target=self._wait, name=f"end of {index}", daemon=True)
        self.reader.start()
        self.waiter.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if line.strip():
                self.last.append(line.rstrip())
            self._say(f"[{self.index}] {line.rstrip()}")
            if self._log is not None:
                self._log.write(line)
                self._log.flush()

    def _wait(self) -> None:
        code = self.popen.wait()
        self.ended = time.monotonic()
        self.code = code if code >= 0 else 128 - code

    def end_words(self) -> str:
        """How it ended, in words."""
        assert self.code is not None
        last = f"; its last line: {self.last[-1]}" if self.last else ""
        if self.code > 128:
            return f"killed by {signal.Signals(self.code - 128).name} (code {self.code}){last}"
        if errors := [line for line in self.last if _ERROR.match(line)]:
            last = f"; its last error: {errors[-1]}"
        reason = next((name for name, reason in REASONS.items() if reason.code == self.code), "")
        return f"code {self.code}" + (f", {reason}" if reason else "") + last


def first_to_fail(ends: Sequence[tuple[int, float, int]]) -> int:
    """Returns the index of the process whose end is the cause. ends: (index, time of the end in s, code not 0), not empty.

    That is the first in time; but of those that ended within two seconds of it, one that something else ended comes before those that
    stopped because a host was missing.
    """
    first = min(time for _, time, _ in ends)
    together = [end for end in ends if end[1] <= first + _TOGETHER_S]
    return min(together, key=lambda end: (end[2] == REASONS["hang"].code, end[1]))[0]


def run_pod(pod: LocalPod, environ: Mapping[str, str], *, say: Callable[[str], None]) -> int:
    """Runs the processes to their end and returns the exit code: 0, or that of the first to fail, whose last line is said again.

    say: is given every line, with the index of its process before it. SIGINT and SIGTERM are passed to all processes, the third time as
    SIGKILL. Once one has failed, the others have `wait_s` to end by themselves; who does not is killed. Call in the main thread.
    """
    lock = threading.Lock()

    def say_whole(line: str) -> None:
        with lock:
            say(line)

    processes: list[_Process] = []
    asked = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        for process in processes:
            if process.code is None:
                process.popen.send_signal(number if asked < _PATIENCE else signal.SIGKILL)

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    began = time.monotonic()
    try:
        processes += [_Process(pod, index, environ, say_whole) for index in range(pod.processes)]
        while running := [process for process in processes if process.code is None]:
            failed = [process for process in processes if process.code]
            if failed and time.monotonic() > min(process.ended for process in failed) + pod.wait_s:
                for process in running:
                    say_whole(f"local pod: process {process.index} did not end within {pod.wait_s:g} s of the first failure: killed")
                    process.popen.kill()
                    process.waiter.join()
            running[0].waiter.join(0.1)
        for process in processes:
            process.reader.join(2.0)  # a grandchild may hold the pipe
    finally:
        for process in processes:
            if process.popen.poll() is None:
                process.popen.kill()
        for number, handler in old.items():
            signal.signal(number, handler)
    ends = [(process.index, process.ended, process.code) for process in processes if process.code]
    if not ends:
        say(f"local pod: all {pod.processes} processes are done, in {time.monotonic() - began:.0f} s")
        return 0
    first = processes[first_to_fail(ends)]
    how = "end" if first.code == REASONS["preempted"].code else "fail"
    say(f"local pod: process {first.index} of {pod.processes} was the first to {how}: {first.end_words()}")
    assert first.code is not None
    return first.code
