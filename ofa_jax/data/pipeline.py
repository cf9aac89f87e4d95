"""`data_step` -> `Batch`, as a pure function of the config and the seed, and an iterator that makes batches ahead of time.

Position is the step alone: nothing here has a state that needs saving, any worker count and any host count gives the same rows, and
any past batch can be made again. Order: `mixture`. Content errors: `quarantine`. Randomness: one Philox stream a row and retry.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import grain
import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.config.rows import CodeArea
from ofa_jax.config.schema import BlockConfig, DataConfig, SourceConfig
from ofa_jax.data.batch import Batch, Block, Reject, Row, collate
from ofa_jax.data.mixture import Draw, Members, block_order, class_members, host_rows, rows_before
from ofa_jax.data.quarantine import Quarantine
from ofa_jax.data.records import Record, RecordError
from ofa_jax.data.storage import StoreError
from ofa_jax.data.workers import WorkerProcesses

MAX_REDRAWS = 8  # draws that may replace a rejected record before the row, and with it the run, fails
READ_TRIES = 3  # for input and output errors
RETRY_WAIT_S = 0.25  # before the second try; doubles with every further one
MAX_THREADS = 2  # threads that make batches when there are no worker processes; more would only queue for the interpreter

T = TypeVar("T")


class RecordSource(Protocol):
    """What the pipeline asks of a dataset's split: see `data.records.open_records`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises RecordError for content errors and OSError for input and output errors."""
        ...

    def sequence_lengths(self, row: str) -> np.ndarray:
        """Returns the tokens of every record's sequences, uint16 [records, tasks, 2]; asked for blocks with length classes only."""
        ...


class Origin(NamedTuple):
    """Where a row of a batch came from."""

    source: SourceConfig
    element: int  # of the block's endless order
    record: int  # index into the source's records of the record that was used
    record_id: str
    rejects: tuple[Reject, ...]  # records that were drawn for the row before and could not be used


RowBuild = Callable[[BlockConfig, SourceConfig, Record, np.random.Generator], Row]


def row_generator(*, seed: int, block_index: int, element: int, retry: int) -> np.random.Generator:
    """The generator of one row: Philox with key (seed, block) and a counter that starts at (element, retry), 2^128 draws apart."""
    key = np.array([seed % 2**64, block_index], np.uint64)
    counter = np.array([0, 0, retry, element], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class Pipeline:
    """Makes this host's part of every global batch.

    Args:
      data: blocks, worker count and limits.
      seed: the run's seed.
      build_row: turns a record into a row; raises RecordError for content it cannot use. It must be picklable by cloudpickle when
        `data.num_workers` is above 0, and may be called from several threads.
      open_source: opens the records of one line of a mixture; called once for each (dataset, split, with or without codes), in each worker
        process again.
      host, num_hosts: host h of n makes rows [h * R / n, (h + 1) * R / n) of each block's R rows.
      quarantine: where given, `iterate` lists rejects there and applies its stop rule (with several hosts it only lists them: the
        rule needs the sums over all hosts).

    Raises DataError when the rows of a block do not divide by the hosts.
    """

    def __init__(
        self,
        data: DataConfig,
        seed: int,
        build_row: RowBuild,
        open_source: Callable[[SourceConfig], RecordSource],
        host: int = 0,
        num_hosts: int = 1,
        *,
        quarantine: Quarantine | None = None,
    ):
        self._data, self._seed = data, seed
        self._build_row, self._open_source = build_row, open_source
        self._host, self._num_hosts = host, num_hosts
        self._blocks = data.row_blocks
        self._rows = tuple(host_rows(block, host=host, num_hosts=num_hosts) for block in self._blocks)
        self._quarantine = quarantine
        self._opened: dict[tuple[str, str, CodeArea | None], RecordSource] = {}
        self._orders: list[grain.MapDataset[Draw]] | None = None
        self._drawn: tuple[tuple[Members, ...], ...] = ()  # by part and source, once the records are open
        self._lock = threading.Lock()
        self._iterators: list[BatchIterator] = []

    def __getstate__(self) -> dict[str, object]:
        """Worker processes open the records themselves and list no rejects."""
        state = self.__dict__.copy()
        for name in ("_lock", "_iterators"):
            del state[name]
        return state | {"_opened": {}, "_orders": None, "_drawn": (), "_quarantine": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._iterators = []

    @property
    def num_rows(self) -> int:
        """Rows that this host makes for one batch, over all blocks."""
        return sum(len(rows) for rows in self._rows)

    def batch(self, data_step: int, *, stopped: Callable[[], bool] = lambda: False, images: dict[str, np.ndarray] | None = None) -> Batch:
        """This host's part of the global batch `data_step` (>= 0); the same whenever, wherever and how often it is asked for.

        With `images`, an empty dictionary at first, its pictures take the memory of those of the last call with the same dictionary, which
        are gone then: new memory would cost a page fault every 4 KiB, and a heap that grows and shrinks by whole batches.

        Raises DataError when records cannot be read, or when one row finds no usable record in `MAX_REDRAWS` further draws, and
        CancelledError as soon as `stopped()`, which is asked before each row.
        """
        return self._make(data_step, stopped, {} if images is None else images)[0]

    def trace(self, data_step: int) -> tuple[Batch, dict[str, tuple[Origin, ...]]]:
        """`batch(data_step)`, and by block name where each of its rows came from, in their order. Raises as `batch` does."""
        return self._make(data_step, lambda: False, {})

    def members(self) -> tuple[tuple[Members, ...], ...]:
        """What every part of a batch (`DataConfig.row_blocks`) draws of each of its sources. Raises DataError for a dataset that cannot be
        opened."""
        self._open()
        return self._drawn

    def _make(
        self, data_step: int, stopped: Callable[[], bool], images: dict[str, np.ndarray]
    ) -> tuple[Batch, dict[str, tuple[Origin, ...]]]:
        if data_step < 0:
            raise ValueError(f"data_step: found {data_step}, expected 0 or more")
        orders = self._open()
        blocks: dict[str, Block] = {}
        origins: dict[str, tuple[Origin, ...]] = {}
        for index, (block, rows) in enumerate(zip(self._blocks, self._rows, strict=True)):
            first = rows_before(block, data_step)
            elements = [first + row for row in rows]
            draws = [orders[index][element] for element in elements]
            of_block: list[Origin] = []
            rows_made = self._make_rows(block, index, elements, draws, of_block, stopped)
            made = collate(rows_made, block, elements, images=images.get(block.name))
            if made.images is not None:
                images[block.name] = made.images
            blocks[block.name] = made
            origins[block.name] = tuple(of_block)
        rejects = tuple(reject for rows in origins.values() for origin in rows for reject in origin.rejects)
        return Batch(data_step, blocks, rejects), origins

    def _make_rows(
        self, block: BlockConfig, index: int, elements: list[int], draws: list[Draw], origins: list[Origin], stopped: Callable[[], bool]
    ) -> Iterator[Row]:
        """Yields the rows of one part of a batch and appends where each came from to `origins`."""
        for element, draw, record in zip(elements, draws, self._read_all(block, draws), strict=True):
            if stopped():
                raise CancelledError
            row, origin = self._make_row(block, index, element, draw, record)
            origins.append(origin)
            yield row

    def iterate(self, start: int) -> BatchIterator:
        """The batches `start`, `start` + 1, ... without end, made ahead of time; close it (it is a context manager) when done."""
        iterator = BatchIterator(self, start)
        self._iterators.append(iterator)
        return iterator

    def close(self) -> None:
        """Closes every iterator. Safe to call more than once."""
        while self._iterators:
            self._iterators.pop().close()

    def _open(self) -> list[grain.MapDataset[Draw]]:
        with self._lock:
            if self._orders is None:
                for source in (source for block in self._blocks for source in block.sources):
                    key = _opening(source)
                    if key not in self._opened:
                        self._opened[key] = _retry_io(partial(self._open_source, source), f"opening {_name(source)}")
                self._drawn = tuple(self._members())
                self._orders = [
                    block_order(
                        block,
                        members=members,
                        seed=self._seed,
                        block_index=index,
                        stage_steps=self._data.stage_steps,
                    )
                    for index, (block, members) in enumerate(zip(self._blocks, self._drawn, strict=True))
                ]
            return self._orders

    def _source(self, source: SourceConfig) -> RecordSource:
        return self._opened[_opening(source)]

    def _members(self) -> list[tuple[Members, ...]]:
        """What each part of a batch draws of each of its sources: all records, or those of its length class."""
        members: list[tuple[Members, ...]] = []
        for block in self._blocks:
            records = [self._source(source) for source in block.sources]
            if not block.all_classes:
                members.append(tuple(Members(len(source)) for source in records))
            elif block.place == 0:
                parts = self._blocks[len(members) : len(members) + len(block.all_classes)]
                lengths = [source.sequence_lengths(line.row) for source, line in zip(records, block.sources, strict=True)]
                members += class_members(parts, lengths)
        return members

    def _read_all(self, block: BlockConfig, draws: list[Draw]) -> list[Record | RecordError]:
        """The records of one block's draws; a content error stands in the place of its record."""
        read: dict[int, Record | RecordError] = {}
        for number, source in enumerate(block.sources):
            places = [place for place, draw in enumerate(draws) if draw.source == number]
            indices = [draws[place].record for place in places]
            for place, record in zip(places, self._read(source, indices), strict=True):
                read[place] = record
        return [read[place] for place in range(len(draws))]

    def _read(self, source: SourceConfig, indices: list[int]) -> list[Record | RecordError]:
        """Reads in one call where the source can; one bad record makes it read one by one."""
        records = self._source(source)
        what = f"reading {_name(source)}"
        if len(indices) > 1 and hasattr(records, "read"):
            try:
                return list(_retry_io(lambda: records.read(indices), what))
            except RecordError:
                pass  # which of the records it was comes out below
        read: list[Record | RecordError] = []
        for index in indices:
            try:
                read.append(_retry_io(partial(records.__getitem__, index), what))
            except RecordError as error:
                read.append(error.with_traceback(None))  # which would hold this list, and it the error, until the collector comes by
        return read

    def _make_row(self, block: BlockConfig, block_index: int, element: int, draw: Draw, record: Record | RecordError) -> tuple[Row, Origin]:
        """The row of one element and where it came from; rejected records are replaced by further draws from what the block draws of the
        same source, so that the mixture holds."""
        source, index = block.sources[draw.source], draw.record
        rejects: list[Reject] = []
        for retry in range(MAX_REDRAWS + 1):
            generator = row_generator(seed=self._seed, block_index=block_index, element=element, retry=retry)
            if retry:
                index = self._drawn[block_index][draw.source].at(int(generator.integers(self._drawn[block_index][draw.source].num_records)))
                [record] = self._read(source, [index])
            if isinstance(record, RecordError):
                last = record
            else:
                try:
                    row = self._build_row(block, source, record, generator)
                    return row, Origin(source, element, index, record.record_id, tuple(rejects))
                except RecordError as error:
                    last = error.with_traceback(None)  # which would hold this frame with its record, and it the error
            rejects.append(Reject(last.dataset, last.record, last.reason, last.field, last.found, last.expected, retry))
        raise DataError(
            f"block {block.name}: row {element}: {MAX_REDRAWS + 1} draws from {_name(source)} gave no usable record; the last one: {last}"
        )


class BatchIterator(Iterator[Batch]):
    """Batches in the order of their steps, made ahead by threads or by worker processes. Use it as a context manager."""

    def __init__(self, pipeline: Pipeline, start: int):
        # Opening the records here turns a missing dataset into an error of this call, before any worker starts.
        pipeline._open()
        self._pipeline, self._closed = pipeline, False
        data = pipeline._data
        self._maker: WorkerProcesses | _Threads
        if data.num_workers > 0:
            self._maker = WorkerProcesses(pipeline, start, num_workers=data.num_workers, prefetch=data.prefetch)
        else:
            self._maker = _Threads(pipeline, start)

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __next__(self) -> Batch:
        """The next batch. Raises DataError as `Pipeline.batch` does, when the stop rule fires, and when a worker process died."""
        if self._closed:
            raise StopIteration
        try:
            batch = self._maker.next()
            quarantine = self._pipeline._quarantine
            if quarantine is not None:
                quarantine.add(batch.rejects, data_step=batch.data_step, rows=self._pipeline.num_rows)
                if self._pipeline._num_hosts == 1:
                    quarantine.judge()
        except BaseException:
            self.close()
            raise
        return batch

    def close(self) -> None:
        """Stops threads and processes and waits for them; rows in the making are finished first. Safe to call more than once."""
        if not self._closed:
            self._closed = True
            self._maker.close()


class _Threads:
    """`data.prefetch` batches in the making by a few threads of this process."""

    def __init__(self, pipeline: Pipeline, start: int):
        self._pipeline, self._steps = pipeline, itertools.count(start)
        self._stopping = threading.Event()
        prefetch = max(pipeline._data.prefetch, 1)
        self._pool = ThreadPoolExecutor(min(prefetch, MAX_THREADS), thread_name_prefix="batches")
        self._pending: collections.deque[Future[Batch]] = collections.deque()
        for _ in range(prefetch):
            self._submit()

    def _submit(self) -> None:
        self._pending.append(self._pool.submit(self._pipeline.batch, next(self._steps), stopped=self._stopped))

    def _stopped(self) -> bool:
        # A program that ends without closing still waits for its threads: let them find nothing to do.
        return self._stopping.is_set() or not threading.main_thread().is_alive()

    def next(self) -> Batch:
        batch = self._pending.popleft().result()
        self._submit()
        return batch

    def close(self) -> None:
        self._stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _opening(source: SourceConfig) -> tuple[str, str, CodeArea | None]:
    """What lines must share to share opened records."""
    return source.dataset, source.split, source.code_area


def _name(source: SourceConfig) -> str:
    return f"dataset {source.dataset} split {source.split}"


def _retry_io(call: Callable[[], T], what: str) -> T:
    """Calls again after an input or output error, `READ_TRIES` times in all, then raises one DataError that says `what` failed."""
    wait_s = RETRY_WAIT_S
    for left in range(READ_TRIES - 1, -1, -1):
        try:
            return call()
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise DataError(f"{what}: {error}") from error  # waiting does not mend these
        except StoreError as error:
            raise DataError(f"{what}: {error}") from error  # the store was waited for
        except OSError as error:
            if not left:
                raise DataError(f"{what} failed {READ_TRIES} times, the last time with: {type(error).__name__}: {error}") from error
        time.sleep(wait_s)
        wait_s *= 2
    raise AssertionError("unreachable")
