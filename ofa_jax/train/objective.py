"""What can be trained: an objective makes the first parameters and says what a batch costs. Step, state and loop know no more of it."""

from __future__ import annotations

from typing import Any, Protocol

import jax
from flax import nnx

from ofa_jax.config.schema import RunConfig
from ofa_jax.data.batch import Block
from ofa_jax.train.loss import LossSums
from ofa_jax.train.picture_words import PictureWords
from ofa_jax.train.pretraining import Pretraining


class Objective(Protocol):
    """A model and its loss, both pure functions of their arguments."""

    def init(self, key: jax.Array) -> tuple[nnx.State, Any]:
        """Returns freshly drawn parameters and the running statistics of an untrained model; works under `jax.eval_shape`."""

    def loss(
        self, params: Any, stats: Any, blocks: dict[str, Block], key: jax.Array | None, *, num_tasks: int, step: jax.Array | int = 0
    ) -> tuple[jax.Array, tuple[Any, dict[str, LossSums]]]:
        """Returns (the loss of one global batch, (new running statistics, sums by group)).

        key: of this data step; None means evaluation: nothing random, and no update of the statistics.
        step: int [], updates made before this one; a loss may change in the course of a run.
        """

    def num_params(self, params: Any) -> int:
        """Returns the number of parameters that mean something (arrays or ShapeDtypeStructs)."""


def make_objective(config: RunConfig) -> Objective:
    """Returns the objective that `config.objective` names."""
    return PictureWords(config) if config.objective == "picture_words" else Pretraining(config)
