"""What can be trained: an objective makes the first parameters and says what a batch costs. Step, state and loop know no more of it."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import optax
from flax import nnx

from ofa_jax.config.schema import AnyRun, VQGANRunConfig
from ofa_jax.data.batch import Batch, Block
from ofa_jax.train.loss import LossReport
from ofa_jax.train.picture_words import PictureWords
from ofa_jax.train.pretraining import Pretraining
from ofa_jax.train.reconstruction import Reconstruction


class Objective(Protocol):
    """A model and its loss. All methods with arrays are pure functions of their arguments."""

    by_rows: bool  # the loss is a sum over rows, so that each device runs its own (`train/gradients`)

    def init(self, key: jax.Array) -> tuple[nnx.State, Any]:
        """Returns freshly drawn parameters and the running statistics of an untrained model; works under `jax.eval_shape`."""

    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """Returns what turns gradients into updates; its `update` takes `accepted`, bool [], whether the state is to change."""

    def counts(self, blocks: dict[str, Block]) -> dict[str, jax.Array]:
        """Returns what the sums of the loss are divided by, int [] by group, from the arrays of the global batch alone."""

    def loss(
        self,
        params: Any,
        stats: Any,
        blocks: dict[str, Block],
        key: jax.Array | None,
        *,
        num_tasks: int,
        step: jax.Array | int = 0,
        counts: dict[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, LossReport]:
        """Returns (the loss of one global batch, what else there is to say of it).

        Parts that play against each other share the one loss, each cut off from the gradients of the others' terms.

        key: of this data step; None means evaluation: nothing random, and no update of the statistics.
        step: int [], updates made before this one; a loss may change in the course of a run.
        counts: of the global batch, where `blocks` are a part of one; the losses of the parts add up to its loss.
        """

    def revise(self, params: Any, stats: Any, *, step: jax.Array) -> tuple[Any, Any]:
        """Returns parameters and statistics after an update with what no gradient can do to them; most objectives change nothing.

        step: int [], updates made before this one.
        """

    def num_params(self, params: Any) -> int:
        """Returns the number of parameters that mean something (arrays or ShapeDtypeStructs)."""

    def num_examples(self, batch: Batch) -> int:
        """Returns how many examples a host's batch holds, as speed counts them."""

    def check(self) -> None:
        """Raises `UserError` when the config's blocks do not fit the model."""

    def check_batch(self, batch: Batch, *, num_hosts: int = 1) -> None:
        """Raises `UserError` when a host's batch is not what the config says."""


def make_objective(config: AnyRun) -> Objective:
    """Returns the objective that `config.objective` names."""
    if isinstance(config, VQGANRunConfig):
        return Reconstruction(config)
    return PictureWords(config) if config.objective == "picture_words" else Pretraining(config)
