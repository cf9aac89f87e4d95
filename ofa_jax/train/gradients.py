"""The gradient of a global batch: every device on its own rows, a micro-batch after another, and one exchange at the end.

The loss is a sum over rows divided by counts of the batch (`train/loss`), so that a device's rows, and a micro-batch of them, have their
part of it and of the gradient. What devices send each other is said here and in `parallel/layout`, and nothing else is sent:

- Parameters rest split over `fsdp` and are gathered once a step, in the compute dtype. (A gather in every layer would be repeated for
  every group of sequences that runs through the layers.) Gradients are summed on the device over groups and micro-batches, then summed
  over devices and split again, once.
- The vocabulary matrix stays split, and its gradient too.
- Batch norm over a whole stream, drop-worst and drop-best ask all devices.

A micro-batch takes consecutive rows of its device: images that share their batch statistics (`model.norm_group`) stay together. Running
statistics are updated once, from the moments of all micro-batches and devices. What a row draws at random depends on its place in its
block alone, so that devices and micro-batches change gradients by the order of sums only. What chooses among all tokens of the batch
or normalises over all its images is refused with micro-batches by `config/check`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ofa_jax.config.errors import UserError
from ofa_jax.data.batch import Block
from ofa_jax.parallel.layout import VOCAB_AXIS, Rows, own_rows
from ofa_jax.parallel.mesh import BATCH_AXES, num_batch_shards
from ofa_jax.train.loss import LossReport

Counts = dict[str, jax.Array] | None
LossOf = Callable[[Any, Any, dict[str, Block], jax.Array, jax.Array, Counts], tuple[jax.Array, LossReport]]


def gradients(
    loss_of: LossOf,
    params: Any,
    stats: Any,
    blocks: dict[str, Block],
    key: jax.Array,
    step: jax.Array,
    *,
    counts_of: Callable[[dict[str, Block]], dict[str, jax.Array]],
    micros: int,
    mesh: Mesh,
    shardings: Any,
    compute: np.dtype,
) -> tuple[tuple[jax.Array, LossReport], Any]:
    """Returns ((loss, report), gradients) of a global batch, as `jax.value_and_grad(has_aux=True)` would.

    loss_of: (params, stats, blocks of some rows, key, step, counts of the batch or None) -> the rows' part of the loss, and what there is
    to say of it; with counts None it asks the other devices for their tokens. counts_of: the blocks of some rows -> theirs. micros:
    micro-batches. shardings: of the parameters. compute: the dtype that parameters are sent in.

    Raises `UserError` when a device's rows cannot be shared evenly by the micro-batches.
    """
    check_rows(blocks, micros=micros, mesh=mesh)
    shards = num_batch_shards(mesh)
    if shards == 1:
        return _own_gradients(loss_of, params, stats, blocks, key, step, counts_of=counts_of, micros=micros, rows=Rows(micros=micros))
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)
    rows = Rows(axes, shards, mesh.shape[VOCAB_AXIS], micros=micros, sent=compute if mesh.shape[VOCAB_AXIS] > 1 else None)
    manual = set(mesh.axis_names) if mesh.shape["tensor"] == 1 else set(BATCH_AXES)
    places = jax.tree.map(lambda sharding: _only(sharding.spec, manual), shardings)
    gathered = _gathered(shardings)

    def local(params: Any, stats: Any, blocks: dict[str, Block], key: jax.Array, step: jax.Array) -> Any:
        with jax.named_scope("exchange"):
            whole = jax.tree.map(lambda value, dimension: _gather(value, dimension, compute), params, gathered)
        (loss, report), grads = _own_gradients(loss_of, whole, stats, blocks, key, step, counts_of=counts_of, micros=micros, rows=rows)
        with jax.named_scope("exchange"):
            grads = jax.tree.map(lambda grad, dimension, place: _sum_and_split(grad, dimension, place, axes), grads, gathered, places)
        # As differences, so that statistics which are frozen stay as they are to the bit.
        stats = jax.tree.map(lambda new, old: new if new is old else old + lax.pmean(new - old, axes), report.stats, stats)
        groups, scalars = lax.psum(report.groups, axes), lax.pmean(report.scalars, axes)
        return (lax.psum(loss, axes), LossReport(stats, groups, scalars)), grads

    whole = PartitionSpec()
    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(places, whole, PartitionSpec(BATCH_AXES), whole, whole),
        out_specs=(whole, places),
        axis_names=manual,
        check_vma=False,
    )
    return run(params, stats, blocks, key, step)


def check_rows(blocks: dict[str, Block], *, micros: int, mesh: Mesh) -> None:
    """Raises `UserError` when the rows of a block cannot be shared evenly by the devices and their micro-batches."""
    shards = num_batch_shards(mesh)
    for name, block in blocks.items():
        rows = (block.task_ids if block.images is None else block.images).shape[0]
        if rows % (shards * micros):
            raise UserError(
                f"data.blocks.{name}.rows: found {rows}, expected a multiple of {shards * micros} "
                f"(optimizer.accumulate={micros} on {shards} devices)"
            )


def _own_gradients(
    loss_of: LossOf,
    params: Any,
    stats: Any,
    blocks: dict[str, Block],
    key: jax.Array,
    step: jax.Array,
    *,
    counts_of: Callable[[dict[str, Block]], dict[str, jax.Array]],
    micros: int,
    rows: Rows,
) -> tuple[tuple[jax.Array, LossReport], Any]:
    """Returns the part of a device's own rows, whose gradients are sums over its micro-batches."""
    if micros == 1:
        with own_rows(rows):
            return jax.value_and_grad(lambda params: loss_of(params, stats, blocks, key, step, None), has_aux=True)(params)
    counts = counts_of(blocks)
    counts = lax.psum(counts, rows.axes) if rows.axes else counts

    def part(blocks: dict[str, Block], micro: jax.Array) -> tuple[Any, ...]:
        with own_rows(dataclasses.replace(rows, micro=micro)):
            gradient = jax.value_and_grad(lambda params: loss_of(params, stats, blocks, key, step, counts), has_aux=True)
            (loss, report), grads = gradient(params)
        # The new statistics are linear in the moments, so their mean over micro-batches is the update by the mean of all moments.
        moved = jax.tree.map(lambda new, old: (new - old) / micros, report.stats, stats)
        scalars = jax.tree.map(lambda value: value / micros, report.scalars)
        return loss, grads, report.groups, moved, scalars

    def add(total: Any, xs: tuple[dict[str, Block], jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part(*xs)), None

    parts = jax.tree.map(lambda values: values.reshape(micros, values.shape[0] // micros, *values.shape[1:]), blocks)
    with own_rows(rows):
        zero = jax.eval_shape(part, jax.tree.map(lambda values: values[0], parts), jnp.int32(0))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), zero)
    (loss, grads, groups, moved, scalars), _ = lax.scan(add, zero, (parts, jnp.arange(micros)))
    return (loss, LossReport(jax.tree.map(jnp.add, stats, moved), groups, scalars)), grads


_WHOLE = -1  # of a parameter that is not gathered
# Elements of a gradient below which it is summed whole, with others, and cut: XLA refuses to scatter some small shapes on TPUs.
_SMALL = 2**16


def _gathered(shardings: Any) -> Any:
    """Returns for each parameter the dimension over `fsdp` that is gathered before use; `_WHOLE` for those that are whole already, and for
    the vocabulary's rows, which stay split."""

    def dimension(variable: Any) -> Any:
        axes = variable.get_metadata()["axes"]
        split = [place for place, part in enumerate(variable.get_value().spec) if "fsdp" in _names(part) and axes[place] != "vocab"]
        return variable.replace(split[0] if split else _WHOLE)

    return jax.tree.map(dimension, shardings, is_leaf=lambda node: hasattr(node, "get_metadata"))


def working_bytes(params: Any, shardings: Any, *, compute: np.dtype) -> tuple[int, int]:
    """Returns the bytes of a device's (gathered parameters, gradients before they are summed), beside what rests there.

    params: shapes; shardings: of them, over any mesh.
    """
    gathered = gradients = 0
    parts = zip(jax.tree.leaves(params), jax.tree.leaves(shardings), jax.tree.leaves(_gathered(shardings)), strict=True)
    for leaf, sharding, dimension in parts:
        count = math.prod(sharding.shard_shape(leaf.shape))
        if dimension != _WHOLE:
            count *= sharding.mesh.shape[VOCAB_AXIS]
            gathered += count * compute.itemsize * (sharding.mesh.shape[VOCAB_AXIS] > 1)
        gradients += count * leaf.dtype.itemsize
    return gathered, gradients


def _gather(value: jax.Array, dimension: int, compute: np.dtype) -> jax.Array:
    """Returns a parameter whole, with values of the compute dtype where it was sent."""
    if dimension == _WHOLE:
        return value
    return lax.all_gather(value.astype(compute), VOCAB_AXIS, axis=dimension, tiled=True).astype(value.dtype)


def _sum_and_split(grad: jax.Array, dimension: int, place: PartitionSpec, axes: tuple[str, ...]) -> jax.Array:
    """Returns the gradient summed over the devices, split as its parameter."""
    if dimension != _WHOLE and grad.size < _SMALL:
        grad = lax.optimization_barrier(lax.psum(grad, axes))
        part = grad.shape[dimension] // lax.axis_size(VOCAB_AXIS)
        return lax.dynamic_slice_in_dim(grad, lax.axis_index(VOCAB_AXIS) * part, part, dimension)
    if dimension != _WHOLE and grad.ndim > 3:  # kernels of convolutions, flat: XLA refuses some as they are
        first = jnp.moveaxis(grad, dimension, 0)
        flat = lax.psum_scatter(first.reshape(first.shape[0], -1), VOCAB_AXIS, scatter_dimension=0, tiled=True)
        grad = jnp.moveaxis(flat.reshape(-1, *first.shape[1:]), 0, dimension)
    elif dimension != _WHOLE:
        grad = lax.psum_scatter(grad, VOCAB_AXIS, scatter_dimension=dimension, tiled=True)
    split = {name for part in place for name in _names(part)}
    over = tuple(axis for axis in axes if axis not in split)
    return lax.psum(grad, over) if over else grad


def _names(part: Any) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else tuple(part or ())


def _only(spec: PartitionSpec, manual: set[str]) -> PartitionSpec:
    """Returns the part of a spec that speaks of the axes `manual`."""

    def part(names: Any) -> Any:
        kept = tuple(name for name in _names(names) if name in manual)
        return kept[0] if len(kept) == 1 else (kept or None)

    return PartitionSpec(*map(part, spec))
