"""What runs beside a process of a run on its own machine: starts it so that it outlives the ssh connection, and says how it is.

`launch/pods/worker.py` is called by the other command lines of `launch/pods`, on every machine of a cluster. Its folder holds the log, the
command and, once it has ended, the exit code; a lock says whether it runs, so that no number of a process that is long gone is believed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ofa_jax.clusters.ends import AGAIN, last_error, shell_code
from ofa_jax.config.errors import UserError
from ofa_jax.monitor.maintenance import metadata_server

STARTED_WITHIN_S = 20.0  # a process that only takes a lock
# Answers of many workers come through one pipe, where writes of up to 4,096 bytes stay whole (POSIX: PIPE_BUF).
_MOST_LINE_BYTES = 4_000
_LOG_BYTES = (2_000, 1_000, 400, 0)  # in one answer: as much as fits, once it is written as JSON
_MOST_ERROR_CHARACTERS = 400  # of a line
LONG_LOG = 1_000  # characters of an answer's log after which there is probably more
_TAIL_BYTES = 200_000
_ATTRIBUTES = "computeMetadata/v1/instance/attributes"
_TIMEOUT_S = 10.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of a run's processes this machine has, counted over all slices."""

    index: int = 0
    count: int = 1


def find_place() -> Place:
    """Returns this machine's place in its Cloud TPU slices, from its metadata server, as JAX's own detection reads it; the only one of
    one on machines that have no such server. Raises UserError where the server says something else than JAX understands."""
    server = metadata_server()
    number = _attribute(server, "agent-worker-number") if server else ""
    if not number:
        return Place()
    workers = len([name for name in _attribute(server, "worker-network-endpoints").split(",") if name])
    facts = dict(line.partition(":")[::2] for line in _attribute(server, "tpu-env").splitlines())
    facts = {name.strip(): value.strip().strip("'\"") for name, value in facts.items()}
    texts = {
        "agent-worker-number": number.strip(),
        "MEGASCALE_SLICE_ID": facts.get("MEGASCALE_SLICE_ID", "0"),
        "MEGASCALE_NUM_SLICES": facts.get("MEGASCALE_NUM_SLICES", "1"),
    }
    for name, text in texts.items():
        if not text.isdigit():
            raise UserError(f"metadata server {server}: {name}: found {text!r}, expected a number")
    worker, own_slice, slices = (int(text) for text in texts.values())
    if not worker < workers or not own_slice < slices:
        raise UserError(f"metadata server {server}: found worker {worker} of {workers} in slice {own_slice} of {slices}")
    return Place(own_slice * workers + worker, slices * workers)


def _attribute(server: str, name: str) -> str:
    """An attribute of this machine; "" where it has none."""
    request = urllib.request.Request(f"http://{server}/{_ATTRIBUTES}/{name}", headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise UserError(f"metadata server {server}: {name}: found {error}, expected an answer") from error
    except OSError as error:
        raise UserError(f"metadata server {server}: {name}: no answer ({error})") from error


def run_environment(place: Place) -> dict[str, str]:
    """Returns the environment that tells a process of its place (`parallel/hosts.py`): JAX finds the others by itself."""
    if place.count == 1:
        return {}
    return {"OFA_DISTRIBUTED": "1", "OFA_PROCESS_ID": str(place.index), "OFA_NUM_PROCESSES": str(place.count)}


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of one process, in the folder of its cluster's name."""

    folder: Path

    @property
    def log(self) -> Path:
        """What it printed, of the run that was started last."""
        return self.folder / "worker.log"

    @property
    def code(self) -> Path:
        """Its exit code, once it has ended."""
        return self.folder / "worker.code"

    @property
    def started(self) -> Path:
        """Its command and the process that holds it, as JSON."""
        return self.folder / "worker.json"

    @property
    def lock(self) -> Path:
        """Held as long as it runs."""
        return self.folder / "worker.lock"


def is_running(files: Files) -> bool:
    """Returns whether the lock of the process is held."""
    if not files.lock.exists():
        return False
    with files.lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def start(files: Files, command: Sequence[str], *, holder: Sequence[str]) -> int:
    """Starts `holder` (a command line that ends in `hold`) in a session of its own and returns its process number, once it runs or has
    ended. Raises UserError where a process runs already."""
    files.folder.mkdir(parents=True, exist_ok=True)
    if is_running(files):
        raise UserError(f"{files.folder}: found {_started(files).get('command')} running, expected nothing; stop it first, or watch it")
    if files.log.exists():
        os.replace(files.log, files.log.with_suffix(".log.before"))
    files.code.unlink(missing_ok=True)
    with files.log.open("wb") as log:
        process = subprocess.Popen([*holder, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    files.started.write_text(json.dumps({"pid": process.pid, "command": list(command)}) + "\n", encoding="utf-8")
    deadline = time.monotonic() + STARTED_WITHIN_S
    while not is_running(files) and not files.code.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"{files.log}: the process did not start: {' '.join(last_error(_tail(files.log)))}")
        time.sleep(0.05)
    return process.pid


def hold(files: Files, command: Sequence[str], place: Place) -> int:
    """Runs the command to its end, notes its exit code and returns it. SIGTERM is passed on to it; the lock is held meanwhile."""
    files.folder.mkdir(parents=True, exist_ok=True)
    with files.lock.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        files.code.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, *command], env={**os.environ, **run_environment(place)}, stdin=subprocess.DEVNULL)
        with _passing_on(process, direct=True):
            code = shell_code(process.wait())
        _note(files, code)
    return code


def watch_task(files: Files, command: Sequence[str]) -> int:
    """Runs the command in the foreground, under a scheduler that signals every process itself, and returns its exit code, which is noted.
    What it prints goes on to this process's output and into the log."""
    files.folder.mkdir(parents=True, exist_ok=True)
    files.code.unlink(missing_ok=True)
    with files.log.open("wb") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        with _passing_on(process, direct=False):
            while piece := os.read(process.stdout.fileno(), 65_536):
                log.write(piece)
                log.flush()
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
            code = shell_code(process.wait())
    _note(files, code)
    return code


def run_mapped(command: Sequence[str], *, again: int) -> int:
    """Runs the command and returns its exit code, but `again` where the same command goes on: for schedulers with a code of their own for
    that. SIGTERM is passed on."""
    process = subprocess.Popen([sys.executable, *command], stdin=subprocess.DEVNULL)
    with _passing_on(process, direct=True):
        code = shell_code(process.wait())
    return again if code in AGAIN else code


@contextlib.contextmanager
def _passing_on(process: subprocess.Popen[bytes], *, direct: bool) -> Iterator[None]:
    """SIGTERM does not end this process; with `direct` the other one gets it from here."""

    def told(number: int, frame: Any) -> None:
        if direct and process.poll() is None:
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _note(files: Files, code: int) -> None:
    """The code appears whole or not at all: it is read by others meanwhile."""
    half = files.code.with_suffix(".half")
    half.write_text(f"{code}\n", encoding="utf-8")
    os.replace(half, files.code)


def stop(files: Files, *, grace_s: float) -> str:
    """Ends the process by SIGTERM, on which a run saves, and after `grace_s` by SIGKILL. Returns a sentence on what happened."""
    if not is_running(files):
        return "nothing runs"
    number = int(_started(files).get("pid", 0))
    if number:
        os.kill(number, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while is_running(files):
        if time.monotonic() > deadline:
            os.killpg(number, signal.SIGKILL)
            _wait_for_end(files)
            return f"killed, {grace_s:g} s after SIGTERM"
        time.sleep(0.1)
    return "ended on SIGTERM"


def _wait_for_end(files: Files) -> None:
    deadline = time.monotonic() + STARTED_WITHIN_S
    while is_running(files) and time.monotonic() < deadline:
        time.sleep(0.05)


State = Literal["none", "running", "ended"]


@dataclasses.dataclass(frozen=True)
class Report:
    """How one process is, as it travels over ssh: a line of JSON."""

    worker: int
    workers: int
    state: State
    code: int = 0
    error: tuple[str, ...] = ()
    log: str = ""  # what was printed since the offset that was asked for
    offset: int = 0  # to ask for next

    def to_line(self) -> str:
        """Returns the line."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @staticmethod
    def from_line(line: str) -> Report | None:
        """Returns the report that a line is, None for another line."""
        if not line.startswith('{"worker": '):
            return None
        try:
            found = json.loads(line)
            return Report(**{**found, "error": tuple(found["error"])})
        except (json.JSONDecodeError, TypeError, KeyError):
            return None  # cut off by a connection that broke


def read_end(files: Files) -> tuple[int, str]:
    """Returns (exit code, end of the log) of a process that does not run any more. One that left no code was killed with what held it,
    or its machine was started again."""
    code = int(files.code.read_text()) if files.code.exists() else 128 + signal.SIGKILL
    return code, _tail(files.log)


def report(files: Files, place: Place, *, since: int | None) -> Report:
    """Returns how the process is, with what its log has from the byte `since` on (None: no log), or the first part of that."""
    if is_running(files):
        found = Report(place.index, place.count, "running")
    elif not files.started.exists():
        return Report(place.index, place.count, "none")
    else:
        code, log = read_end(files)
        error = tuple(line[:_MOST_ERROR_CHARACTERS] for line in last_error(log)) if code else ()
        found = Report(place.index, place.count, "ended", code, error)
    for most in _LOG_BYTES if since is not None else ():
        text, offset = _read(files.log, since or 0, most)
        whole = dataclasses.replace(found, log=text, offset=offset)
        if len(whole.to_line().encode()) <= _MOST_LINE_BYTES:
            return whole
    return found


def follow_log(files: Files, *, lines: int, follow: bool, prefix: str) -> Iterator[str]:
    """Yields the last lines of the log, each with the prefix, and with `follow` those to come, until the process has ended."""
    text, offset = _tail(files.log), files.log.stat().st_size if files.log.exists() else 0
    yield from (prefix + line for line in text.splitlines()[-lines:])
    while follow:
        running = is_running(files)
        text, offset = _read(files.log, offset, _TAIL_BYTES)
        yield from (prefix + line for line in text.splitlines())
        if not running and not text:
            return
        time.sleep(0.5)


def _started(files: Files) -> dict[str, Any]:
    try:
        return json.loads(files.started.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def _read(path: Path, since: int, most: int) -> tuple[str, int]:
    """Whole lines of a file from a byte on, and the byte after them. A file that is shorter was begun again."""
    if not path.exists():
        return "", 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(since if since <= size else 0)
        begin = file.tell()
        found = file.read(most)
    whole = found[: found.rfind(b"\n") + 1] or (found if len(found) == most else b"")
    return whole.decode(errors="replace"), begin + len(whole)


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return file.read().decode(errors="replace")
