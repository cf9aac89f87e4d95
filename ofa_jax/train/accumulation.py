"""The gradient of a global batch from micro-batches, one after another: the memory of activations is that of one of them.

The loss is a sum over the batch divided by counts of the batch (`train/loss`), and the counts are known before anything is run. So each
micro-batch adds its sums over the counts of the whole batch, and gradients are those of the whole batch but for the order of sums.

- A micro-batch takes, of every row block, consecutive rows of each device: nothing moves between devices, and images that share their
  batch statistics (`model.norm_group`) stay together. Running statistics are updated once, from the moments of all micro-batches.
- Random numbers (dropout, dropped paths, sampled patches) are drawn for a whole block at once, so each micro-batch draws its own: with
  them on, accumulation changes which units are dropped, as another seed does, but not how many.
- What chooses among all tokens of the batch (drop-worst, drop-best) or normalises over all its images (`norm_group=0`) is refused by
  `config/check`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ofa_jax.config.errors import UserError
from ofa_jax.data.batch import Block
from ofa_jax.parallel.mesh import BATCH_AXES, num_batch_shards
from ofa_jax.train.loss import LossReport

LossOf = Callable[[Any, dict[str, Block], jax.Array], tuple[jax.Array, LossReport]]


def split_batch(blocks: dict[str, Block], *, count: int, mesh: Mesh) -> dict[str, Block]:
    """Returns the blocks with a leading axis of `count` micro-batches, each of whose rows are split over the mesh as those of the batch.

    Raises `UserError` when a device's rows cannot be shared evenly.
    """
    shards = num_batch_shards(mesh)
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def split(values: jax.Array) -> jax.Array:
        rows = values.reshape(shards, count, values.shape[0] // (shards * count), *values.shape[1:])
        return lax.with_sharding_constraint(jnp.moveaxis(rows, 1, 0).reshape(count, -1, *values.shape[1:]), sharding)

    for name, block in blocks.items():
        rows = (block.task_ids if block.images is None else block.images).shape[0]
        if rows % (shards * count):
            raise UserError(
                f"data.blocks.{name}.rows: found {rows}, expected a multiple of {shards * count} "
                f"(optimizer.accumulate={count} on {shards} devices)"
            )
    return {name: jax.tree.map(split, block) for name, block in blocks.items()}


def accumulate(
    loss_of: LossOf, params: Any, stats: Any, blocks: dict[str, Block], key: jax.Array, *, count: int, mesh: Mesh, shardings: Any
) -> tuple[tuple[jax.Array, LossReport], Any]:
    """Returns ((loss, report), gradients) of a global batch, as `jax.value_and_grad(loss_of, has_aux=True)` does.

    loss_of: (params, blocks of a micro-batch, key) -> its part of the loss and what there is to say of it; the parts add up to the whole.
    stats: the running statistics before the step. count: micro-batches. shardings: of the gradients, like `params`.
    """

    def part(micro: dict[str, Block], index: jax.Array) -> tuple[Any, ...]:
        (loss, report), grads = jax.value_and_grad(loss_of, has_aux=True)(params, micro, jax.random.fold_in(key, index))
        # The new statistics are linear in the moments, so their mean over micro-batches is the update by the mean of all moments. As a
        # difference, what is frozen stays as it is to the bit.
        moved = jax.tree.map(lambda new, old: (new - old) / count, report.stats, stats)
        scalars = jax.tree.map(lambda value: value / count, report.scalars)
        return loss, lax.with_sharding_constraint(grads, shardings), report.groups, moved, scalars

    def add(total: Any, xs: tuple[dict[str, Block], jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part(*xs)), None

    micros = split_batch(blocks, count=count, mesh=mesh)
    zero = jax.eval_shape(part, jax.tree.map(lambda x: x[0], micros), jnp.int32(0))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), zero)
    (loss, grads, groups, moved, scalars), _ = lax.scan(add, zero, (micros, jnp.arange(count)))
    return (loss, LossReport(jax.tree.map(jnp.add, stats, moved), groups, scalars)), grads
