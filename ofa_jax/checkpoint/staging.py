"""The copy of a state that a save on CPU devices reads while training goes on.

On a CPU device Orbax's copy to the host is no copy: it keeps the buffers of the state. The next step cannot reuse a buffer that is
kept, so it copies each of them into fresh memory: seconds for a model of 180 million parameters, most of them spent by the kernel on new
pages. Here the copy goes to memory that is kept from one save to the next. On other devices Orbax's copy is a real one.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

_ALIGNMENT = 64  # bytes: XLA takes host memory as a CPU device's own only where it is aligned so
_THREADS = 4


def on_cpu(state: Any) -> bool:
    """Returns whether the arrays of `state` lie on CPU devices."""
    return all(device.platform == "cpu" for leaf in jax.tree.leaves(state)[:1] for device in leaf.sharding.device_set)


class HostCopy:
    """Memory for one copy of a state. It is used again by the next copy: read an earlier one no more."""

    def __init__(self, state: Any):
        """Takes memory for the shards of this process, once each; a thread touches it, so that the first copy is as fast as the others."""
        self._shards = shards = _described(state)
        sizes = [int(np.prod(shape)) * dtype.itemsize for dtype, shape in shards]
        starts = np.concatenate([[0], np.cumsum([-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes], dtype=np.int64)])
        memory = mmap.mmap(-1, max(int(starts[-1]), 1))
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        arena = np.frombuffer(memory, np.uint8)
        self._touching = threading.Thread(target=arena.fill, args=(0,), daemon=True)
        self._touching.start()
        self._buffers = [
            arena[start : start + size].view(dtype).reshape(shape)
            for start, size, (dtype, shape) in zip(starts, sizes, shards, strict=False)
        ]

    def fits(self, state: Any) -> bool:
        """Returns whether `state` has the shards that the memory was taken for."""
        return _described(state) == self._shards

    def take(self, state: Any) -> Any:
        """Returns a copy of `state`, of the shapes it was made for, on the same devices. Returns when it is made."""
        self._touching.join()
        jax.block_until_ready(state)
        leaves, tree = jax.tree.flatten(state)
        pairs = zip(self._buffers, (data for leaf in leaves for _, data in _own_shards(leaf)), strict=True)
        with ThreadPoolExecutor(_THREADS) as pool:
            for done in [pool.submit(np.copyto, buffer, _view(data)) for buffer, data in pairs]:
                done.result()
        buffers = iter(self._buffers)
        return jax.tree.unflatten(tree, [_array(leaf, buffers) for leaf in leaves])


def _described(state: Any) -> list[tuple[np.dtype, tuple[int, ...]]]:
    return [(leaf.dtype, data.shape) for leaf in jax.tree.leaves(state) for _, data in _own_shards(leaf)]


def _own_shards(leaf: jax.Array) -> list[tuple[Any, jax.Array]]:
    """Returns (index, data) of this process's shards, each index once: replicas hold the same."""
    return list({str(shard.index): (shard.index, shard.data) for shard in leaf.addressable_shards}.values())


def _view(data: jax.Array) -> np.ndarray:
    # Through DLPack, because `np.asarray` leaves its result in the array, which then could not be donated.
    return np.from_dlpack(data) if data.dtype.kind in "iufcb" else np.asarray(data)


def _array(leaf: jax.Array, buffers: Iterator[np.ndarray]) -> jax.Array:
    """The array of `leaf`'s sharding over the next buffers; JAX takes the aligned memory as it is."""
    by_index = {str(index): next(buffers) for index, _ in _own_shards(leaf)}
    shards = [jax.device_put(by_index[str(shard.index)], shard.device) for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)
