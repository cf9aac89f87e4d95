"""Random access to the bytes of ArrayRecord shards by index over all of them, on local disks or in an object store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from ofa_jax.data.remote_shards import RemoteShards
from ofa_jax.data.storage import is_remote


class ShardReader:
    """The records of a list of shards, as bytes. Readers are opened at first use in each process, so it pickles and survives a fork."""

    def __init__(self, shards: Sequence[str | os.PathLike[str]], lengths: Sequence[int], *, sizes: Sequence[int], name: str):
        """lengths, sizes: records and bytes of each shard. name: what errors call them."""
        self._name = name
        self._shards = tuple(os.fspath(path) for path in shards)
        self._lengths = tuple(lengths)
        self._ends = np.cumsum(lengths)
        self._readers: dict[int, Any] = {}
        self._pid = os.getpid()
        self._remote = RemoteShards(self._shards, lengths, sizes) if any(map(is_remote, self._shards)) else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}, "_pid": -1}

    def read_bytes(self, indices: Sequence[int]) -> list[bytes]:
        """Returns the records at `indices`, in their order; one read per shard, and from a store all of them together. Raises IndexError
        for a place that is not there, OSError when a shard cannot be read."""
        places = np.asarray(indices, np.int64)
        if places.size and (places.min() < 0 or places.max() >= len(self)):
            raise IndexError(f"{self._name} has {len(self)} records; asked for {places.min()} to {places.max()}")
        shard_of = np.searchsorted(self._ends, places, side="right")
        first = self._ends - np.asarray(self._lengths, np.int64)
        if self._remote is not None:
            return self._remote.read(shard_of, places - first[shard_of])
        out: list[bytes] = [b""] * len(places)
        for shard in np.unique(shard_of):
            where = np.flatnonzero(shard_of == shard)
            local = places[where] - first[shard]
            path = self._shards[shard]
            try:
                found = self._reader(int(shard)).read(local.tolist())
            except (RuntimeError, ValueError, IndexError) as error:  # what ArrayRecord raises for unreadable bytes
                raise OSError(f"{path}: records {local.min()} to {local.max()} cannot be read ({str(error).splitlines()[0]})") from error
            for place, data in zip(where, found, strict=True):
                out[place] = data
        return out

    def _reader(self, shard: int) -> Any:
        if self._pid != os.getpid():  # threads and buffers of a reader do not survive a fork
            self._readers, self._pid = {}, os.getpid()
        if shard not in self._readers:
            path = self._shards[shard]
            if not os.path.exists(path):
                raise OSError(f"{path}: the shard is gone")
            # Shards are written with one record a chunk, so reads need no read-ahead.
            reader = array_record_module.ArrayRecordReader(path, options="readahead_buffer_size:0,max_parallelism:0")
            if not reader.ok() or reader.num_records() != self._lengths[shard]:
                found = f"{reader.num_records()} records" if reader.ok() else "no readable index"
                raise OSError(f"{path}: found {found}, expected {self._lengths[shard]} records")
            self._readers[shard] = reader
        return self._readers[shard]
