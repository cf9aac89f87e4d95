"""One training step: a pure, compiled function of (state, batch); the objective says what a batch costs.

A bad step, as `train/guard` judges it, leaves all but `data_step` and the guard as it was.

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

from ofa_jax.config.schema import AnyRun
from ofa_jax.data.batch import Batch, Block
from ofa_jax.models.operations import sequences_a_row
from ofa_jax.models.precision import policy
from ofa_jax.parallel.mesh import batch_sharding, replicated
from ofa_jax.train.gradients import Counts, gradients
from ofa_jax.train.guard import Verdict, judge, select
from ofa_jax.train.keys import DATA_KEY, run_key
from ofa_jax.train.loss import add_sums, total_loss
from ofa_jax.train.objective import make_objective
from ofa_jax.train.optimizer import average, learning_rate, norms_by_part, stop_frozen
from ofa_jax.train.state import TrainState, state_shardings


class StepMetrics(NamedTuple):
    """What a step reports: small arrays, replicated over the devices."""

    loss: jax.Array  # float []
    group_loss: dict[str, jax.Array]  # float [] by "pairs" and "images_text", of what has tokens
    task_nll: jax.Array  # float [num_tasks]: sums over target tokens
    task_tokens: jax.Array  # float [num_tasks]
    grad_norm: jax.Array  # float []: before clipping
    part_norms: dict[str, jax.Array]  # float [] by part of the model: the same of its gradients alone
    learning_rate: jax.Array  # float []
    scalars: dict[str, jax.Array]  # float [] by metric name: what else the objective reports
    step: jax.Array  # int32 []: updates made, this one too unless it was skipped
    verdict: Verdict  # of the guard


TrainStep = Callable[[TrainState, dict[str, Block]], tuple[TrainState, StepMetrics]]


def make_train_step(config: AnyRun, mesh: Mesh, *, num_tasks: int) -> TrainStep:
    """Returns the compiled step (state, blocks) -> (new state, metrics). The given state is donated: do not use it again.

    It is compiled at its first call, for the shapes of the config; `num_compilations` tells how often it was.
    """
    objective = make_objective(config)
    objective.check()
    tx = objective.optimizer()
    schedule = learning_rate(config.optimizer, steps=config.steps)
    shardings = state_shardings(config, mesh)

    def step(state: TrainState, blocks: dict[str, Block]) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(run_key(config.seed, DATA_KEY), state.data_step)

        def loss_of(params: Any, stats: Any, blocks: dict[str, Block], key: jax.Array, step: jax.Array, counts: Counts) -> Any:
            params = stop_frozen(params, config.optimizer)
            return objective.loss(params, stats, blocks, key, num_tasks=num_tasks, step=step, counts=counts)

        if objective.by_rows:
            (loss, report), grads = gradients(
                loss_of,
                state.params,
                state.stats,
                blocks,
                key,
                state.step,
                counts_of=objective.counts,
                micros=config.optimizer.accumulate,
                mesh=mesh,
                shardings=shardings.params,
                compute=policy(config.precision).compute,
            )
        else:
            (loss, report), grads = jax.value_and_grad(
                lambda params: loss_of(params, state.stats, blocks, key, state.step, None), has_aux=True
            )(state.params)
        with jax.named_scope("optimizer"):
            grad_norm = optax.tree.norm(grads)
            guard, verdict = judge(state.guard, loss=loss, grad_norm=grad_norm, config=config.guard)
            # Everything is chosen before it is used further: chosen at the end, new moments and parameters would take memory of their own.
            ok = verdict.accepted
            updates, opt_state = tx.update(grads, state.opt_state, state.params, accepted=ok)
            params = select(ok, optax.apply_updates(state.params, updates), state.params)
            revised, stats = objective.revise(params, report.stats, step=state.step)
            params = jax.tree.map(lambda new, old: old if new is old else jnp.where(ok, new, old), revised, params)
            stats, count = select(ok, (stats, state.step + 1), (state.stats, state.step))
            ema = state.ema
            if ema is not None:
                ema = select(ok, average(ema, params, config=config.optimizer, count=state.step), ema)
        nothing = jnp.zeros((num_tasks,))
        sums = add_sums(list(report.groups.values())) if report.groups else None
        metrics = StepMetrics(
            loss=loss,
            group_loss=total_loss(report.groups)[1] if report.groups else {},
            task_nll=nothing if sums is None else sums.task_nll,
            task_tokens=nothing if sums is None else sums.task_tokens,
            grad_norm=grad_norm,
            part_norms=norms_by_part(grads),
            learning_rate=schedule(state.step),
            scalars=report.scalars,
            step=count,
            verdict=verdict,
        )
        return TrainState(params, opt_state, stats, ema, guard, count, state.data_step + 1), metrics

    return jax.jit(step, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=(shardings, replicated(mesh)), donate_argnums=0)


def num_compilations(step: Any) -> int:
    """Returns how many programs a compiled step holds: 1 after the first call, more when shapes or placements changed."""
    return step._cache_size()  # JAX has no public count


def put_batch(batch: Batch, mesh: Mesh) -> dict[str, Block]:
    """Returns the batch's blocks as global arrays split over the mesh; each process gives its own rows. `elements` stay behind."""
    sharding = batch_sharding(mesh)

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, array)

    return {name: jax.tree.map(put, block._replace(elements=None)) for name, block in batch.blocks.items()}


def abstract_blocks(config: AnyRun, sharding: Any = None) -> dict[str, Block]:
    """Returns the global batch as shapes and dtypes, as `put_batch` places it; `elements` are None there."""

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    blocks = {}
    for block in config.data.row_blocks:
        sequences = 0 if block.stream == "pictures" else block.rows * sequences_a_row(block)
        pictures = block.stream != "text"
        px = block.image_px
        ids = array((sequences, block.decoder_len), np.int32)
        blocks[block.name] = Block(
            images=array((block.rows, px, px, 3), np.uint8) if pictures else None,
            image_mask=array((block.rows,), np.bool_) if pictures else None,
            hole_mask=array((block.rows,), np.bool_) if pictures else None,
            source_ids=array((sequences, block.source_len), np.int32),
            decoder_ids=ids,
            target_ids=ids,
            confidence=array((sequences,), np.float32),
            code_mask=array((sequences,), np.bool_),
            task_ids=array((sequences,), np.int32),
            elements=None,  # type: ignore[arg-type]
        )
    return blocks
