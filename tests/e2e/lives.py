"""One life of a training run: started as a person starts it, watched from outside, ended by a signal in a chosen phase, written down.

A phase is told by what the run itself writes: the heartbeat file says which one began last (at most 0.2 s late), a folder with Orbax's
temporary ending says that a save is under way, the list of batches says that the first one has come. Folders and files of earlier lives
are told apart by their times.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("compile", "data start", "step", "save", "restore", "evaluation")
_OF_BEATS = {"restore": "restore", "save": "save", "evaluate": "evaluation"}
_AGAIN = ("step", "save", "evaluation")  # phases that come more than once in a life
_POLL_S = 0.004


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a life is run."""

    processes: int
    devices: int  # of each process

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}"


@dataclasses.dataclass(frozen=True)
class Aim:
    """What is to happen to a life."""

    phase: str  # of PHASES
    signal: str  # SIGKILL or SIGTERM
    hosts: tuple[int, ...]  # who gets it
    after_steps: int  # steps that the life makes first, where the phase comes more than once
    delay_s: float  # from the begin of the phase


@dataclasses.dataclass
class Files:
    """What a run has on disk."""

    workdir: Path

    def committed(self) -> list[int]:
        """The steps of complete checkpoints, ascending."""
        folder = self.workdir / "checkpoints"
        if not folder.is_dir():
            return []
        return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "commit_success.txt").exists())

    def is_saving(self, since: float) -> bool:
        """Whether a folder of a checkpoint that is being written was made since then (seconds of the Unix epoch)."""
        for path in self.workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"):
            try:
                if path.stat().st_ctime >= since:
                    return True
            except FileNotFoundError:
                continue  # committed in between
        return False

    def phase(self, host: int, since: float) -> str:
        """What the heartbeat of a host says that was begun last, as the training loop names it; "" without one since then."""
        try:
            beat = json.loads((self.workdir / f"heartbeat_{host}.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return ""
        return beat["phase"] if beat["written"] >= since else ""

    def batches(self, host: int, since: float = 0.0) -> dict[int, str]:
        """Digests by data step, as the list has them; none where it was not written since then. A life cuts off what earlier ones have
        beyond its start when it takes its first batch."""
        path = self.workdir / f"batches_{host}.jsonl"
        if not path.exists() or path.stat().st_mtime < since:
            return {}
        return {line["data_step"]: line["digest"] for line in json_lines(path)}

    def last_end(self, host: int) -> dict[str, Any]:
        """The last line on this host's lives, where it tells of an end."""
        found = json_lines(self.workdir / f"lives_{host}.jsonl")
        return found[-1] if found and found[-1]["event"] == "end" else {}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file that may still be written."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1] if line] if path.exists() else []


def _die_with_parent() -> None:
    """Runs in the child: a suite that is killed leaves no training behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Job:
    """The processes of one life."""

    def __init__(self, arguments: Sequence[str], layout: Layout, logs: Sequence[Path], *, workdir: Path, cache: Path):
        """Starts launch/train.py with `arguments`, once a process; what they print goes to `logs`.

        cache: the folder of compiled programs, shared by all lives.
        """
        self.files, self.logs, self.began = Files(workdir), list(logs), time.time()
        self.start = max(self.files.committed(), default=0)  # where this life must go on from
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
        flags.append(f"--xla_force_host_platform_device_count={layout.devices}")
        environment = {
            **os.environ,
            "XLA_FLAGS": " ".join(flags),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if layout.processes > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(layout.processes)}
        self.processes = []
        for host, log in enumerate(self.logs):
            with log.open("w") as out:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(ROOT / "launch" / "train.py"), *arguments],
                        env={**environment, "JAX_PROCESS_ID": str(host)} if layout.processes > 1 else environment,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        preexec_fn=_die_with_parent,
                    )
                )

    def phases(self) -> list[str]:
        """The phases that the life is in, of PHASES: that of its loop, or "start", and "save" where one is under way beside it."""
        beat = self.files.phase(0, self.began)
        found = _OF_BEATS.get(beat, "start")
        if beat in ("data", "compile", "step"):  # which follow each other faster than the heartbeat is written
            if "first step after " in self.logs[0].read_text(errors="replace"):
                found = "step"
            else:
                found = "compile" if self.steps_begun() else "data start"
        return [found, "save"] if found != "save" and self.files.is_saving(self.began) else [found]

    def steps_begun(self) -> int:
        """How many batches this life has taken."""
        batches = self.files.batches(0, self.began)
        return max(max(batches, default=-1) + 1 - self.start, 0)

    def ended(self) -> bool:
        """Whether a process has ended."""
        return any(process.poll() is not None for process in self.processes)

    def wait_for(self, aim: Aim, deadline_s: float) -> str:
        """Returns the phase of the moment to strike (the one aimed at where it is among several), or "" where a process ended before. One
        that is over before the delay is awaited once more with half the delay where it comes again; else the moment is now."""
        deadline, delay_s, entered = time.monotonic() + deadline_s, aim.delay_s, 0.0
        while not self.ended():
            now = time.monotonic()
            if now > deadline:
                raise TimeoutError(f"{aim.phase} did not come within {deadline_s:.0f} s; see {self.logs[0]}")
            phases = self.phases()
            due = aim.phase in phases and (aim.phase not in _AGAIN or self.steps_begun() >= aim.after_steps)
            if due and not entered:
                entered = now
            if due and now - entered >= delay_s:
                return aim.phase
            if entered and not due:
                if aim.phase not in _AGAIN:
                    return phases[0]
                entered, delay_s = 0.0, delay_s / 2
            time.sleep(_POLL_S)
        return ""

    def strike(self, aim: Aim) -> None:
        """Sends the signal."""
        for host in aim.hosts:
            self.processes[host].send_signal(signal.Signals[aim.signal])

    def finish(self, patience_s: float) -> tuple[list[int], bool]:
        """Waits for all processes; returns their exit codes and whether some had to be killed because they did not end in `patience_s`."""
        deadline, forced = time.monotonic() + patience_s, False
        for process in self.processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                forced = True
                process.kill()
                process.wait()
        return [process.returncode for process in self.processes], forced


def restored_step(log: Path) -> int | None:
    """The step that a life said it goes on from; None where it was killed before."""
    text = log.read_text(errors="replace")
    if found := re.search(r"^going on from step (\d+) ", text, re.MULTILINE):
        return int(found[1])
    return 0 if re.search(r"^starting at step 0$", text, re.MULTILINE) else None
