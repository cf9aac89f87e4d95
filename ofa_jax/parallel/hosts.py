"""Start-up of several processes, one a host, and their index and count.

The same command runs on every host. JAX's own environment names say that there are several: `JAX_COORDINATOR_ADDRESS` with
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; a TPU pod announces itself by `TPU_WORKER_HOSTNAMES` with more than one name, and
`OFA_DISTRIBUTED=1` asks for JAX's detection of the cluster (Slurm, MPI, Cloud TPU). Where that detection asks a server, whoever starts the
processes says their places too, by `OFA_PROCESS_ID` and `OFA_NUM_PROCESSES`: they name files before JAX is started.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from ofa_jax.config.errors import UserError

_HALF = 2**30
_START_S = 300
_LATER = 4  # times the deadline of the hang watch, which is to come first


def place(environ: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Returns (index, count) of this process among those of its job as the environment tells it, before `start`: (0, 1) where it tells of
    no others. Raises `UserError` when it names a coordinator but not this process's place."""
    environ = os.environ if environ is None else environ
    if address := environ.get("JAX_COORDINATOR_ADDRESS", ""):
        numbers = []
        for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"):
            text = environ.get(name, "")
            if not text.isdigit():
                raise UserError(f"environment variable {name}: found {text!r}, expected a number, as JAX_COORDINATOR_ADDRESS is {address}")
            numbers.append(int(text))
        return numbers[0], numbers[1]
    told = (environ.get("OFA_PROCESS_ID", ""), environ.get("OFA_NUM_PROCESSES", "")) if _asked(environ) else ("", "")
    pod = _pod_place(environ)
    cluster = (environ.get("SLURM_PROCID", ""), environ.get("SLURM_NTASKS", "")) if _asked(environ) else ("", "")
    for own, all_of_them in (told, pod, cluster):
        if own.isdigit() and all_of_them.isdigit() and int(all_of_them) > 1:
            return int(own), int(all_of_them)
    return 0, 1


def _pod_place(environ: Mapping[str, str]) -> tuple[str, str]:
    """(index, count) as Kubernetes tells them to the pods of TPU slices, as texts. A slice numbers its own workers from 0; several
    slices have numbers in `MEGASCALE_SLICE_ID`."""
    worker, workers = environ.get("TPU_WORKER_ID", ""), len(_workers(environ))
    own_slice, slices = environ.get("MEGASCALE_SLICE_ID", "") or "0", environ.get("MEGASCALE_NUM_SLICES", "") or "1"
    if not all(text.isdigit() for text in (worker, own_slice, slices)):
        return "", ""
    return str(int(own_slice) * workers + int(worker)), str(int(slices) * workers)


def _workers(environ: Mapping[str, str]) -> list[str]:
    return [name for name in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]


def _asked(environ: Mapping[str, str]) -> bool:
    return environ.get("OFA_DISTRIBUTED", "") == "1"


def start(environ: Mapping[str, str] | None = None, *, deadline_s: float = 0.0) -> bool:
    """Joins the other processes where the environment says that there are some. Returns whether it did. Call before any JAX work.

    deadline_s: that of the hang watch (0: five minutes). JAX ends a process in its own, wordless way when others are missing at the start,
    or silent later, for four times as long, so that the watch comes first. Raises `UserError` as `place` does.
    """
    wait_s = int(deadline_s) or _START_S
    limits = {"initialization_timeout": _LATER * wait_s, "heartbeat_timeout_seconds": _LATER * wait_s}
    environ = os.environ if environ is None else environ
    address = environ.get("JAX_COORDINATOR_ADDRESS", "")
    if address:
        own, all_of_them = place(environ)
        jax.distributed.initialize(coordinator_address=address, num_processes=all_of_them, process_id=own, **limits)
        return True
    if len(_workers(environ)) > 1 or _asked(environ):
        jax.distributed.initialize(**limits)
        return True
    return False


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
