"""The loss of every task on held-out batches, during training: the run's own objective without anything random, as one more program.

Works on any mesh and in several processes: each gives its own rows, the sums are over the global batches. Batches are made at the first
evaluation and kept in the host's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ofa_jax.config.schema import RunConfig
from ofa_jax.data.batch import Batch
from ofa_jax.models.operations import sequences_a_row
from ofa_jax.monitor.writers import Number
from ofa_jax.parallel.mesh import make_mesh, replicated
from ofa_jax.train.loop import BatchSource
from ofa_jax.train.loss import add_sums
from ofa_jax.train.objective import make_objective
from ofa_jax.train.step import put_batch

MIN_SEQUENCES, MIN_BATCHES = 2_048, 2


class HeldOutLoss:
    """A function from a train state to `held_out/nll/<task>`, nats a token over all batches, and `held_out/loss`, the objective's mean."""

    def __init__(self, config: RunConfig, source: BatchSource, *, task_names: Sequence[str], devices: Sequence[jax.Device] | None = None):
        """config: of the held-out batches, whose blocks `source` gives; parameters and mesh are those of training. task_names: by id."""
        self.mesh = make_mesh(config.mesh, devices=devices)
        self._objective, self._source, self._task_names = make_objective(config), source, tuple(task_names)
        sequences = sum(block.rows * sequences_a_row(block) for block in config.data.row_blocks)
        self.num_batches = max(MIN_BATCHES, -(-MIN_SEQUENCES // sequences))
        self._batches: list[Batch] = []

        def measure(params: Any, stats: Any, blocks: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
            loss, report = self._objective.loss(params, stats, blocks, None, num_tasks=len(self._task_names))
            sums = add_sums(list(report.groups.values()))
            return loss, sums.task_nll, sums.task_tokens

        self.program: Callable[..., Any] = jax.jit(measure, out_shardings=replicated(self.mesh))

    def __call__(self, state: Any) -> dict[str, Number]:
        """Returns the numbers of `state`: of its average of the weights where it keeps one, as every evaluation.

        All processes must call it at the same step. Raises what the source of the batches raises.
        """
        if not self._batches:
            batches = self._source.iterate(0)
            try:
                self._batches = [next(batches) for _ in range(self.num_batches)]
            finally:
                batches.close()
        params = state.params if state.ema is None else state.ema
        losses, nll, tokens = [], np.zeros(len(self._task_names)), np.zeros(len(self._task_names))
        for batch in self._batches:
            loss, batch_nll, batch_tokens = jax.device_get(self.program(params, state.stats, put_batch(batch, self.mesh)))
            losses.append(float(loss))
            nll, tokens = nll + batch_nll, tokens + batch_tokens
        found: dict[str, Number] = {"held_out/loss": float(np.mean(losses))}
        return found | {
            f"held_out/nll/{name}": float(nll[index] / tokens[index]) for index, name in enumerate(self._task_names) if tokens[index] > 0
        }
