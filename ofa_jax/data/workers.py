"""Worker processes that make batches ahead of time, and the pipes that their batches come through."""

from __future__ import annotations

import ctypes
import gc
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError
from multiprocessing.connection import Connection
from typing import NamedTuple, Protocol

import cloudpickle
import numpy as np

from ofa_jax.config.errors import DataError, UserError
from ofa_jax.data.batch import Batch

STOP_GRACE_S = 5.0  # after which a worker process that was told to stop is killed
_POLL_S = 0.05
_TIDY_EVERY = 16  # batches of a worker


class MakesBatches(Protocol):
    """What a worker process asks of a pipeline: see `data.pipeline.Pipeline.batch`."""

    def batch(self, data_step: int, *, stopped: Callable[[], bool] = ..., images: dict[str, np.ndarray] | None = None) -> Batch: ...


class _Made(NamedTuple):
    """What a worker process sends. Exceptions travel as text, because not all of them survive pickling."""

    batch: Batch | None
    error: str = ""
    is_user_error: bool = False


class WorkerProcesses:
    """Worker processes, each with a pipe of its own: worker w of n makes the steps start + w, start + w + n, ...

    A plain pipe a worker, because of what was measured with Grain's `mp_prefetch` (0.2.18): a clean end printed warnings of leaked
    shared memory, closing waited 28 s for slow rows, and a worker that exited with status 0 hung its consumer. Here the death of a
    worker, at any moment, is the end of its pipe; the death of this process is the end of the workers' `alive` pipe.
    """

    def __init__(self, pipeline: MakesBatches, start: int, *, num_workers: int, prefetch: int):
        """Starts the processes; `prefetch` batches are made ahead of the consumer. `pipeline` has to pickle by cloudpickle."""
        self._num_workers = num_workers
        self._next_step = start
        self._stopping = threading.Event()
        self._made: queue.Queue[_Made] = queue.Queue()
        self._room = threading.Semaphore(max(prefetch, 1))
        context = multiprocessing.get_context("spawn")
        pickled = cloudpickle.dumps(pipeline)
        workers_alive, self._alive = context.Pipe(duplex=False)
        self._receiving: list[Connection] = []
        self._processes = []
        for worker in range(self._num_workers):
            receiving, sending = context.Pipe(duplex=False)
            arguments = (pickled, start + worker, self._num_workers, sending, workers_alive)
            process = context.Process(target=_work, args=arguments, name=f"data-worker-{worker}", daemon=True)
            process.start()
            sending.close()  # the worker's copy is the only one left, so that its death ends the pipe
            self._receiving.append(receiving)
            self._processes.append(process)
        workers_alive.close()
        self._receiver = threading.Thread(target=self._receive, name="data-receiver")
        self._receiver.start()

    def next(self) -> Batch:
        """The next batch. Raises DataError for the errors of users' files and for a worker that died, RuntimeError for a bug."""
        made = self._made.get()
        self._room.release()
        step, self._next_step = self._next_step, self._next_step + 1
        if made.batch is None:
            raise DataError(made.error) if made.is_user_error else RuntimeError(f"batch {step} failed in a data worker: {made.error}")
        return made.batch

    def close(self) -> None:
        """Ends the processes and waits for them."""
        self._stopping.set()
        self._receiver.join()

    def _stopped(self) -> bool:
        return self._stopping.is_set() or not threading.main_thread().is_alive()

    def _receive(self) -> None:
        """Takes batches from the workers in turn while there is room; runs in a thread and ends the workers when it ends."""
        try:
            for connection, process in itertools.cycle(list(zip(self._receiving, self._processes, strict=True))):
                while not self._room.acquire(timeout=_POLL_S):
                    if self._stopped():
                        return
                while not connection.poll(_POLL_S):
                    if self._stopped():
                        return
                try:
                    self._made.put(_receive_made(connection))
                except (EOFError, OSError):
                    process.join(STOP_GRACE_S)
                    found = f"found exit status {process.exitcode}, expected it to live as long as the run"
                    error = f"{process.name} of {self._num_workers} died (was it killed for want of memory?): {found}"
                    self._made.put(_Made(None, error, is_user_error=True))
                    return
        finally:
            self._alive.close()
            for connection in self._receiving:
                connection.close()
            for process in self._processes:
                process.join(STOP_GRACE_S)
                if process.is_alive():  # a read hangs
                    process.kill()
                process.join()


def _work(pickled_pipeline: bytes, first: int, stride: int, sending: Connection, alive: Connection) -> None:
    """The life of a worker process."""
    # Ctrl-C and SIGTERM reach whole process groups. They are the training process's to handle; workers follow it through `alive`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipeline: MakesBatches | None = None
    images: dict[str, np.ndarray] = {}
    for step in itertools.count(first, stride):
        try:
            if pipeline is None:
                pipeline = cloudpickle.loads(pickled_pipeline)
            made = _Made(pipeline.batch(step, stopped=alive.poll, images=images))  # nothing is ever sent: readable means closed
        except CancelledError:
            return
        except UserError as error:
            made = _Made(None, str(error), is_user_error=True)
        except Exception as error:  # noqa: BLE001 - a bug of any type: its words must reach the consumer
            made = _Made(None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        try:
            _send_made(sending, made)
        except OSError:  # the consumer closed
            return
        if step == first:
            gc.collect()
            gc.freeze()  # vocabularies and libraries, a million objects that live as long as the process: no collection walks them again
        elif (step - first) // stride % _TIDY_EVERY == 0:
            _tidy()


def _tidy() -> None:
    """Gives memory back that nobody uses: objects that hold each other, and free pages of the heap, where the C library can.

    Left to themselves both come back late: the oldest generation is collected once it has grown by a quarter, and between records of
    all sizes the heap would grow by some MB an hour.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _send_made(connection: Connection, made: _Made) -> None:
    """Sends the arrays as they lie in memory, after the pickle of the rest and their sizes."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(made, protocol=5, buffer_callback=buffers.append)
    arrays = [buffer.raw() for buffer in buffers]
    connection.send(([array.nbytes for array in arrays], rest))
    for array in arrays:
        while array:
            array = array[os.write(connection.fileno(), array) :]


def _receive_made(connection: Connection) -> _Made:
    """Receives each array into memory of its own, without the copies of `recv_bytes`. Raises EOFError or OSError when the worker died."""
    sizes, rest = connection.recv()
    arrays = [np.empty(size, np.uint8) for size in sizes]
    for array in arrays:
        left = memoryview(array)
        while left:
            received = os.readv(connection.fileno(), [left])
            if not received:
                raise EOFError
            left = left[received:]
    return pickle.loads(rest, buffers=arrays)
