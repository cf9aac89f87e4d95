"""Start-up of several processes, one a host, and their index and count.

The same command runs on every host. JAX's own environment names say that there are several: `JAX_COORDINATOR_ADDRESS` with
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; a TPU pod announces itself by `TPU_WORKER_HOSTNAMES` with more than one name, and
`OFA_DISTRIBUTED=1` asks for JAX's detection of the cluster (Slurm, MPI, Cloud TPU).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ofa_jax.config.errors import UserError

_HALF = 2**30
_START_S = 300


def start(environ: Mapping[str, str] | None = None, *, deadline_s: float = 0.0) -> bool:
    """Joins the other processes where the environment says that there are some. Returns whether it did. Call before any JAX work.

    deadline_s: how long the others are waited for (0: five minutes). JAX ends every process when one has been silent for twice as long,
    later than the hang watch, whose end says more. Raises `UserError` when the environment names a coordinator but not this process's
    place, and when a process is missing at the deadline.
    """
    wait_s = int(deadline_s) or _START_S
    limits = {"initialization_timeout": wait_s, "heartbeat_timeout_seconds": 2 * wait_s}
    environ = os.environ if environ is None else environ
    address = environ.get("JAX_COORDINATOR_ADDRESS", "")
    if address:
        numbers = {}
        for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
            text = environ.get(name, "")
            if not text.isdigit():
                raise UserError(f"environment variable {name}: found {text!r}, expected a number, as JAX_COORDINATOR_ADDRESS is {address}")
            numbers[name] = int(text)
        _join(coordinator_address=address, num_processes=numbers["JAX_NUM_PROCESSES"], process_id=numbers["JAX_PROCESS_ID"], **limits)
        return True
    workers = [name for name in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(workers) > 1 or environ.get("OFA_DISTRIBUTED", "") == "1":
        _join(**limits)
        return True
    return False


def _join(**options: Any) -> None:
    try:
        jax.distributed.initialize(**options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"process {options.get('process_id', '')} found others missing after {options['initialization_timeout']} s, expected all "
            f"{options.get('num_processes', '')}; JAX says: {str(error).splitlines()[0]}"
        ) from error


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
