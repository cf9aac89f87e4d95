"""Start-up of several processes, one a host, and their index and count.

The same command runs on every host. `cluster.detect` reads from the environment which cluster it is, `roll_call` waits for all hosts, and
then JAX is started with what was found, so that it detects nothing by itself.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from ofa_jax.config.errors import UserError
from ofa_jax.monitor import exits
from ofa_jax.parallel import roll_call
from ofa_jax.parallel.cluster import Cluster, detect, machine_attributes

_HALF = 2**30
_START_S = 300
_LATER = 4  # times the deadline of the hang watch, which is to come first

_line: roll_call.Line | None = None


def find_cluster(environ: Mapping[str, str] | None = None) -> Cluster:
    """Returns the cluster that the environment, or this machine's metadata, tells of. Raises `UserError` as `cluster.detect`, and where the
    metadata cannot be read."""
    environ = os.environ if environ is None else environ
    try:
        return detect(environ, attribute=machine_attributes(environ))
    except OSError as error:
        raise UserError(
            f"metadata of this machine: no answer ({error}), expected what tells the hosts of a Cloud TPU; OFA_DISTRIBUTED=0 if this "
            "process is alone"
        ) from error


def place(environ: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Returns (index, count) of this process among those of its job as the environment tells it, before `start`: (0, 1) where it tells of
    no others. Raises `UserError` as `find_cluster`."""
    found = find_cluster(environ)
    return found.index, found.count


def _end_for_loss(said: str) -> None:
    """Ends this process, whose main thread waits for a host that does not come back."""
    code = exits.tell_end("hang", said)
    print(f"ended: hang ({code}): {said}", file=sys.stderr, flush=True)
    os._exit(code)


def start(
    environ: Mapping[str, str] | None = None,
    *,
    deadline_s: float = 0.0,
    on_loss: Callable[[str], None] = _end_for_loss,
    say: Callable[[str], None] = lambda line: None,
    waits_by: str = "",
) -> Cluster:
    """Joins the other processes where there are some, and returns the cluster. Call before any JAX work.

    deadline_s: how long the others are waited for (0: five minutes). JAX ends a process in its own, wordless way when others are silent for
    four times as long. on_loss: called in a thread with a sentence that names a host that is lost, or that failed; it ends the process.
    say: is told, in the first of several, which cluster it is and who is waited for. waits_by: the flag that sets the deadline.

    Raises `UserError` as `find_cluster` and `roll_call.call`, `HangError` that names the hosts that are missing at the deadline.
    """
    global _line
    environ = os.environ if environ is None else environ
    cluster = find_cluster(environ)
    if cluster.count == 1:
        return cluster
    if cluster.index == 0:
        say(str(cluster))
    wait_s = deadline_s or _START_S
    limits = {"initialization_timeout": int(_LATER * wait_s), "heartbeat_timeout_seconds": int(_LATER * wait_s)}
    if not cluster.coordinator:
        jax.distributed.initialize(**limits)
        return cluster
    bind = environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
    _line = roll_call.call(cluster, deadline_s=wait_s, say=say, bind=bind, waits_by=waits_by)
    _line.watch(on_loss)
    exits.on_end(_line.farewell)
    atexit.register(_say_farewell, _line)
    if cluster.index == 0:
        say(
            f"hosts: {', '.join(f'{index} {name}' for index, name in enumerate(_line.names[:20]))}"
            + (", ..." if cluster.count > 20 else "")
        )
    jax.distributed.initialize(
        coordinator_address=cluster.coordinator,
        num_processes=cluster.count,
        process_id=cluster.index,
        local_device_ids=cluster.local_devices or None,
        cluster_detection_method="deactivate",
        **limits,
    )
    return cluster


def _say_farewell(line: roll_call.Line) -> None:
    """At the end of the interpreter, which knows of an exception that nobody caught. What was said before stays."""
    error = getattr(sys, "last_value", None)
    line.farewell(*(("done",) if error is None else (exits.reason_of(error), f"{type(error).__name__}: {error}")))


def lost(wait_s: float) -> str:
    """Returns a sentence on the first other host that was lost or failed, "" where none is known to be after `wait_s`. An error in a
    transfer between hosts is often met before its cause is known."""
    return "" if _line is None else _line.lost(wait_s)


def index() -> int:
    """Returns this process's index, from 0; process 0 writes logs and files."""
    return jax.process_index()


def count() -> int:
    """Returns the number of processes."""
    return jax.process_count()


def sums(*numbers: int) -> tuple[int, ...]:
    """Returns each number summed over all processes. All of them must call it; it waits for the slowest."""
    if jax.process_count() == 1:
        return numbers
    halves = np.asarray([divmod(number, _HALF) for number in numbers], np.int32)  # JAX has no 64-bit integers by default
    high, low = np.sum(multihost_utils.process_allgather(halves), axis=0, dtype=np.int64).T
    return tuple(int(total) for total in high * _HALF + low)


def gather(content: bytes) -> list[bytes]:
    """Returns what every process gave, in the order of their indices. All of them must call it; it waits for the slowest."""
    if jax.process_count() == 1:
        return [content]
    lengths = multihost_utils.process_allgather(np.int32(len(content))).reshape(-1)
    row = np.zeros(int(lengths.max()), np.uint8)
    row[: len(content)] = np.frombuffer(content, np.uint8)
    rows = multihost_utils.process_allgather(row).reshape(len(lengths), -1)
    return [found[:length].tobytes() for found, length in zip(rows, lengths, strict=True)]


def one_after_another() -> Iterator[None]:
    """Yields once, in one process at a time, by index: for writing files on a disk that the processes may or may not share."""
    for turn in range(jax.process_count()):
        if turn == jax.process_index():
            yield
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"turn {turn}")


def is_first() -> bool:
    """Returns whether this process writes the shared files."""
    return jax.process_index() == 0


def use_compilation_cache(environ: Mapping[str, str] | None = None) -> str:
    """Turns on JAX's cache of compiled programs and returns its folder, so that a resumed run starts without compiling again.

    The folder is `JAX_COMPILATION_CACHE_DIR` where that is set, else `ofa_jax/xla` below `XDG_CACHE_HOME` or `~/.cache`.
    """
    environ = os.environ if environ is None else environ
    folder = environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if not folder:
        home = environ.get("XDG_CACHE_HOME", "") or os.path.join(os.path.expanduser("~"), ".cache")
        folder = os.path.join(home, "ofa_jax", "xla")
        os.makedirs(folder, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", folder)
    return folder
