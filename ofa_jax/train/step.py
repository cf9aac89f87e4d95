"""One training step: a pure, compiled function of (state, batch); the objective says what a batch costs.

Random numbers (dropout, dropped paths, sampled patches) depend on (seed, data_step, block) alone, never on devices or hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import PAD_ID, BlockConfig, RunConfig
from ofa_jax.data.batch import Batch, Block
from ofa_jax.parallel.mesh import batch_sharding, replicated
from ofa_jax.train.loss import add_sums, total_loss
from ofa_jax.train.objective import make_objective
from ofa_jax.train.optimizer import average, learning_rate, stop_frozen
from ofa_jax.train.pretraining import code_rows
from ofa_jax.train.state import DATA_KEY, TrainState, run_key, run_optimizer, state_shardings
from ofa_jax.train.token_loss import check_targets, range_mask


class StepMetrics(NamedTuple):
    """What a step reports: small arrays, replicated over the devices."""

    loss: jax.Array  # float []
    group_loss: dict[str, jax.Array]  # float [] by "pairs" and "images_text"
    task_nll: jax.Array  # float [num_tasks]: sums over target tokens
    task_tokens: jax.Array  # float [num_tasks]
    grad_norm: jax.Array  # float []: before clipping
    learning_rate: jax.Array  # float []
    useful_tokens: jax.Array  # float []: share of source and target positions that are no padding


TrainStep = Callable[[TrainState, dict[str, Block]], tuple[TrainState, StepMetrics]]


def make_train_step(config: RunConfig, mesh: Mesh, *, num_tasks: int) -> TrainStep:
    """Returns the compiled step (state, blocks) -> (new state, metrics). The given state is donated: do not use it again.

    It is compiled at its first call, for the shapes of the config; `num_compilations` tells how often it was.
    """
    check_streams(config)
    tx = run_optimizer(config)
    schedule = learning_rate(config.optimizer, steps=config.steps)
    objective = make_objective(config)

    def step(state: TrainState, blocks: dict[str, Block]) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(run_key(config.seed, DATA_KEY), state.data_step)

        def loss_of(params: Any) -> Any:
            return objective.loss(stop_frozen(params, config.optimizer), state.stats, blocks, key, num_tasks=num_tasks, step=state.step)

        (loss, (stats, groups)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = average(ema, params, decay=config.optimizer.ema_decay, count=state.step)
        sums = add_sums(list(groups.values()))
        metrics = StepMetrics(
            loss=loss,
            group_loss=total_loss(groups)[1],
            task_nll=sums.task_nll,
            task_tokens=sums.task_tokens,
            grad_norm=optax.tree.norm(grads),
            learning_rate=schedule(state.step),
            useful_tokens=_useful_tokens(blocks),
        )
        return TrainState(params, opt_state, stats, ema, state.step + 1, state.data_step + 1), metrics

    shardings = state_shardings(config, mesh)
    return jax.jit(step, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=(shardings, replicated(mesh)), donate_argnums=0)


def num_compilations(step: Any) -> int:
    """Returns how many programs a compiled step holds: 1 after the first call, more when shapes or placements changed."""
    return step._cache_size()  # JAX has no public count


def _useful_tokens(blocks: dict[str, Block]) -> jax.Array:
    useful = sum(jnp.sum(b.source_ids != PAD_ID) + jnp.sum(b.decoder_ids != PAD_ID) for b in blocks.values())
    return useful / sum(b.source_ids.size + b.decoder_ids.size for b in blocks.values())


def check_streams(config: RunConfig) -> None:
    """Raises `UserError` when blocks of one stream differ in picture size, or when more patches are to be kept than there are."""
    px_of: dict[str, BlockConfig] = {}
    for block in config.data.blocks:
        field = f"data.blocks.{block.name}"
        first = px_of.setdefault(block.stream, block)
        if first.image_px != block.image_px:
            raise UserError(
                f"{field}.image_px: found {block.image_px}, expected {first.image_px} as in block {first.name} of the "
                f"same stream {block.stream}"
            )
        patches = (block.image_px // config.model.resnet.stride) ** 2
        if block.num_patches > patches:
            raise UserError(f"{field}.num_patches: found {block.num_patches}, expected at most {patches}, all patches")


def check_batch(batch: Batch, config: RunConfig, *, num_hosts: int = 1) -> None:
    """Raises `UserError` when a host's batch does not have the config's blocks and shapes, or holds an id outside the vocabulary, or a
    target outside `loss.constraint_range`."""
    expected_names = [b.name for b in config.data.blocks]
    if list(batch.blocks) != expected_names:
        raise UserError(f"batch {batch.data_step}: found blocks {list(batch.blocks)}, expected {expected_names}")
    for block_config in config.data.blocks:
        block = batch.blocks[block_config.name]
        where = f"batch {batch.data_step}, block {block_config.name}"
        rows = block_config.rows // num_hosts
        if block.elements.shape[0] != rows:
            raise UserError(f"{where}: found {block.elements.shape[0]} rows, expected {rows}")
        lengths = {"source_ids": block_config.source_len, "decoder_ids": block_config.target_len, "target_ids": block_config.target_len}
        for field, length in lengths.items():
            ids = getattr(block, field)
            if ids.ndim != 2 or ids.shape[1] != length or ids.shape[0] % max(rows, 1):
                raise UserError(f"{where}, {field}: found shape {ids.shape}, expected a multiple of {rows} sequences of {length} ids")
            low, high = int(np.min(ids)), int(np.max(ids))
            if low < 0 or high >= config.vocab.size:
                raise UserError(f"{where}, {field}: found id {low if low < 0 else high}, expected 0 to {config.vocab.size - 1}")
        if config.loss.constraint_range:
            allowed = range_mask(config.loss.constraint_range, num_ids=config.vocab.size)
            check_targets(block.target_ids, allowed, where=f"{where}, target_ids (loss.constraint_range={config.loss.constraint_range})")
        if code_rows(block_config) == "none" and block.code_mask.any():
            raise UserError(f"{where}, code_mask: found a target of image codes, expected none, as no source's row is image_infilling")


def put_batch(batch: Batch, mesh: Mesh) -> dict[str, Block]:
    """Returns the batch's blocks as global arrays split over the mesh; each process gives its own rows. `elements` stay behind."""
    sharding = batch_sharding(mesh)

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, array)

    return {name: jax.tree.map(put, block._replace(elements=None)) for name, block in batch.blocks.items()}
