"""The train state: one pytree that a step maps to the next, and its shardings."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ofa_jax.config.schema import AnyRun
from ofa_jax.parallel.mesh import replicated
from ofa_jax.parallel.rules import param_shardings
from ofa_jax.train.guard import initial_guard
from ofa_jax.train.keys import INIT_KEY, run_key
from ofa_jax.train.objective import make_objective
from ofa_jax.train.optimizer import has_no_moment


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. A checkpoint holds exactly this."""

    params: Any  # the model's parameters (an NNX state)
    opt_state: Any  # optax's state; its moments are sharded like the parameters
    stats: Any  # what a model keeps beside parameters: running mean and variance of batch norms
    ema: Any  # average of params, or None where none is kept
    guard: Any  # a `GuardState`: what is usual of losses and gradients
    step: jax.Array  # int32 []: updates made; a skipped one is none
    data_step: jax.Array  # int32 []: batches drawn


def _initial(config: AnyRun, tx: optax.GradientTransformation) -> TrainState:
    params, stats = make_objective(config).init(run_key(config.seed, INIT_KEY))
    return TrainState(
        params=params,
        opt_state=tx.init(params),
        stats=stats,
        # A copy: the state's buffers are donated, and one buffer cannot be given away twice.
        ema=jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay > 0 else None,
        guard=initial_guard(),
        step=jnp.zeros((), jnp.int32),
        data_step=jnp.zeros((), jnp.int32),
    )


def abstract_state(config: AnyRun) -> TrainState:
    """Returns the state as shapes and dtypes, without making an array. Needs little time at any model size."""
    tx = make_objective(config).optimizer()
    return jax.eval_shape(lambda: _initial(config, tx))


def state_shardings(config: AnyRun, mesh: Mesh) -> TrainState:
    """Returns a `TrainState` of `NamedSharding`: parameters, moments and average by the rules table, everything else replicated."""
    tx = make_objective(config).optimizer()
    abstract = abstract_state(config)
    params = param_shardings(abstract.params, mesh)
    whole = replicated(mesh)
    return TrainState(
        params=params,
        opt_state=optax.tree_utils.tree_map_params(
            tx,
            lambda moment, sharding: moment if has_no_moment(moment) else sharding,
            abstract.opt_state,
            params,
            transform_non_params=lambda _: whole,
            is_leaf=has_no_moment,
        ),
        stats=jax.tree.map(lambda _: whole, abstract.stats),
        ema=None if abstract.ema is None else params,
        guard=jax.tree.map(lambda _: whole, abstract.guard),
        step=whole,
        data_step=whole,
    )


def init_state(config: AnyRun, mesh: Mesh) -> TrainState:
    """Returns the state at step 0, made on the devices where it stays; a pure function of the config, its seed included."""
    tx = make_objective(config).optimizer()
    # On a CPU an optimised program that runs once takes three times as long to compile as an unoptimised one, and draws no faster.
    on_cpu = next(iter(mesh.devices.flat)).platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(lambda: _initial(config, tx), out_shardings=state_shardings(config, mesh), compiler_options=options)()


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Returns the shapes of `abstract` with each leaf's sharding, as the checkpoint manager takes it."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
