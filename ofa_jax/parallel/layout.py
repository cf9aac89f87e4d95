"""What a device holds of a batch and of the parameters while the step is traced, and how it asks the others.

The step runs on each device's own rows (`train/gradients`): nothing is sent but what is said by the functions here. Model code calls them
everywhere; outside of such a trace (one device, evaluation, decoding) there are no others, and they return what they are given.

Rows of a batch are split over the mesh axes `data` and `fsdp`. The vocabulary matrix is split by rows over `fsdp` and stays so: tokens are
sent to its parts, which costs less than the matrix, up to some 16 devices.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

RECEIVED = "received"  # the name of such values in policies of `jax.checkpoint`
VOCAB_AXIS = "fsdp"  # over which the vocabulary's rows are split


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which rows of the global batch are being traced: the micro-batch `micro` of `micros`, on one device of those along `axes`."""

    axes: tuple[str, ...] = ()  # of the mesh; () on one device
    shards: int = 1
    vocab_shards: int = 1
    micro: jax.Array | int = 0
    micros: int = 1
    sent: np.dtype | None = None  # the dtype of values of parameters that were gathered


_ALL = Rows()
_ROWS: contextvars.ContextVar[Rows] = contextvars.ContextVar("rows", default=_ALL)


@contextlib.contextmanager
def own_rows(rows: Rows) -> Iterator[None]:
    """Says which rows are traced inside."""
    before = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(before)


def first_row(count: int) -> jax.Array | int:
    """Returns the place in its block of the first of `count` rows (or sequences, or pictures) of a block that are traced here."""
    rows = _ROWS.get()
    shard = lax.axis_index(rows.axes) if rows.axes else 0
    return (shard * rows.micros + rows.micro) * count


def num_shards() -> int:
    """Returns into how many devices' parts the rows are split."""
    return _ROWS.get().shards


def total(x: jax.Array) -> jax.Array:
    """Returns x summed over the devices' rows."""
    axes = _ROWS.get().axes
    return lax.psum(x, axes) if axes else x


def mean(x: jax.Array) -> jax.Array:
    """Returns the mean of x over the devices' rows."""
    axes = _ROWS.get().axes
    return lax.pmean(x, axes) if axes else x


def received(x: jax.Array) -> jax.Array:
    """Returns x, which other devices have a part in, marked to be kept where layers are computed again for the gradient."""
    return checkpoint_name(x, RECEIVED)


def all_rows(x: jax.Array) -> jax.Array:
    """Returns x [R, ...] of all devices, [shards * R, ...], in the batch's order."""
    axes = _ROWS.get().axes
    return lax.all_gather(x, axes, axis=0, tiled=True) if axes else x


def own(x: jax.Array, count: int) -> jax.Array:
    """Returns this device's `count` rows of x [shards * count, ...]."""
    return lax.dynamic_slice_in_dim(x, first_row(count), count, 0) if _ROWS.get().axes else x


def narrow(params: Any) -> Any:
    """Returns parameters that were gathered in the dtype they were sent in, others as they are.

    Their values fit it. Done for each group of sequences, so that groups read the narrow ones and their gradients are summed in the wide.
    """
    sent = _ROWS.get().sent
    if sent is None:
        return params

    def one(variable: Any) -> Any:
        axes, value = variable.get_metadata()["axes"], variable.get_value()
        matrix = sum(axis is not None and axis != "layers" for axis in axes) > 1
        return variable.replace(value.astype(sent)) if matrix and not {"vocab", "buckets"} & set(axes) else variable

    return jax.tree.map(one, params, is_leaf=lambda node: hasattr(node, "get_metadata"))


# --- the vocabulary --------------------------------------------------------------------------------------------------------------


def vocab_shards() -> int:
    """Returns into how many parts the vocabulary's rows are split: 1 where this device has them all."""
    return _ROWS.get().vocab_shards


def first_id(num_rows: int) -> jax.Array | int:
    """Returns the id of the first of this device's `num_rows` rows of the vocabulary."""
    return lax.axis_index(VOCAB_AXIS) * num_rows if vocab_shards() > 1 else 0


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns rows of the vocabulary: table [V / vocab_shards, D], ids int [Q, S] -> [Q, S, D] in the table's dtype.

    Ids are trusted: those outside of the vocabulary give its nearest row on one device, zeros on several.
    """
    if vocab_shards() == 1:
        return jnp.take(table, ids, axis=0, mode="clip")
    ids = lax.all_gather(ids, VOCAB_AXIS, axis=0, tiled=True)
    places = ids - first_id(table.shape[0])
    mine = (places >= 0) & (places < table.shape[0])
    found = jnp.where(mine[..., None], jnp.take(table, jnp.where(mine, places, 0), axis=0, mode="clip"), 0)
    flat = lax.psum_scatter(found.reshape(found.shape[0], -1), VOCAB_AXIS, scatter_dimension=0, tiled=True)
    return flat.reshape(-1, *found.shape[1:])


def all_rows_of(table: jax.Array, ids: np.ndarray) -> jax.Array:
    """Returns rows of the vocabulary whole on every device: table [V / vocab_shards, D], ids int [U], the same on all -> [U, D]."""
    if vocab_shards() == 1:
        return jnp.take(table, ids, axis=0, mode="clip")
    places = ids - first_id(table.shape[0])
    mine = (places >= 0) & (places < table.shape[0])
    return lax.psum(jnp.where(mine[:, None], jnp.take(table, jnp.where(mine, places, 0), axis=0, mode="clip"), 0), VOCAB_AXIS)


@contextlib.contextmanager
def whole_vocab() -> Iterator[None]:
    """Says that logits which are traced inside are of ids that every device has the rows of (`all_rows_of`): none asks another for its."""
    with own_rows(dataclasses.replace(_ROWS.get(), vocab_shards=1)):
        yield


def meet_vocab(x: jax.Array) -> jax.Array:
    """Returns x [Q, ...] of all devices that hold another part of the vocabulary, [vocab_shards * Q, ...]."""
    if vocab_shards() == 1:
        return x
    # Flat rows: XLA refuses to scatter some shapes of three dimensions on TPUs, which is what a gather is backward.
    flat = lax.all_gather(x.reshape(x.shape[0], -1), VOCAB_AXIS, axis=0, tiled=True)
    return flat.reshape(-1, *x.shape[1:])


def leave_vocab(x: jax.Array) -> jax.Array:
    """Returns this device's rows of x [vocab_shards * Q, ...], which all of them know."""
    if vocab_shards() == 1:
        return x
    count = x.shape[0] // vocab_shards()
    return lax.dynamic_slice_in_dim(x, lax.axis_index(VOCAB_AXIS) * count, count, 0)


def vocab_sum(x: jax.Array) -> jax.Array:
    """Returns x summed over the parts of the vocabulary."""
    return lax.psum(x, VOCAB_AXIS) if vocab_shards() > 1 else x


def vocab_max(x: jax.Array) -> jax.Array:
    """Returns the maximum of x over the parts of the vocabulary, without a gradient."""
    return lax.pmax(lax.stop_gradient(x), VOCAB_AXIS) if vocab_shards() > 1 else lax.stop_gradient(x)
