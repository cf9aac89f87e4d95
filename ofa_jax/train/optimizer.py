"""AdamW as fairseq computes it, the learning-rate schedule, clipping by global norm, and the average of the weights.

optax's Adam adds eps after the bias correction of the second moment, `m^ / (sqrt(v^) + eps)`. fairseq, and therefore OFA, adds it
before: `lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)`. The two differ by a factor sqrt(1 - b2^t) on eps, which matters
in the first thousand steps for parameters with tiny gradients, so the transformation is written here.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ofa_jax.config.errors import UserError
from ofa_jax.config.parameters import is_named, stays
from ofa_jax.config.schema import OptimizerConfig
from ofa_jax.parallel.rules import key_path_parts

CLIP_EPS = 1e-6  # added to the norm before dividing, as PyTorch's and fairseq's clipping do


class AdamState(NamedTuple):
    """Moments of fairseq's Adam."""

    count: jax.Array  # int32 []: updates made
    mu: Any  # first moment, raw
    nu: Any  # second moment, raw


def learning_rate(config: OptimizerConfig, *, steps: int) -> optax.Schedule:
    """Returns n -> the learning rate of the update made after n updates, with T = steps and W = int(T * warmup_fraction).

    n <= W: lr * n / W (so the very first update has rate 0, as in fairseq); n >= T: the end rate; between: linear from lr to the end
    rate. W = 0 starts at lr.
    """
    warmup = int(steps * config.warmup_fraction)
    peak, end = config.learning_rate, config.end_learning_rate

    def schedule(count: jax.Array) -> jax.Array:
        n = jnp.asarray(count, jnp.result_type(float))
        decay = (peak - end) * (1.0 - (n - warmup) / max(steps - warmup, 1)) + end
        rate = jnp.where(n >= steps, end, decay)
        return jnp.where(n <= warmup, peak * n / warmup, rate) if warmup > 0 else rate

    return schedule


def one_minus_power(beta: float, t: jax.Array) -> jax.Array:
    """Returns 1 - beta^t, float []. Written with expm1: in float32 the plain form loses four digits at t = 1, beta = 0.999."""
    return jnp.ones_like(t) if beta == 0.0 else -jnp.expm1(t * math.log(beta))


def check_named(params: Any, config: OptimizerConfig) -> None:
    """Raises `UserError` for the first entry of `config.frozen` or `config.trained` that names no parameter, and where nothing learns.
    params: arrays or their shapes."""
    names = [key_path_parts(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    for field in ("frozen", "trained"):
        for entry in getattr(config, field):
            if not any(is_named(name, (entry,)) for name in names):
                depth = len(entry.split("/"))
                options = dict.fromkeys("/".join(name[:depth]) for name in names)
                close = difflib.get_close_matches(entry, options, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]}?" if close else f"its parts are {', '.join(dict.fromkeys(name[0] for name in names))}"
                raise UserError(f"optimizer.{field}: found {entry}, which names no parameter of the model; {hint}")
    if all(stays(name, config) for name in names):
        said = f"optimizer.trained: found {', '.join(config.trained)}, all of it in" if config.trained else "optimizer.frozen: found all in"
        raise UserError(f"{said} optimizer.frozen={','.join(config.frozen)}, expected something that learns")


def has_no_moment(node: Any) -> bool:
    """Returns whether a node of a tree of moments stands for a frozen parameter."""
    return isinstance(node, optax.MaskedNode)


def _chosen(accepted: jax.Array | bool, new: jax.Array, old: jax.Array) -> jax.Array:
    return new if accepted is True else jnp.where(accepted, new, old)


def _map_moments(function: Callable[[jax.Array, jax.Array], jax.Array], moments: Any, grads: Any) -> Any:
    return jax.tree.map(lambda m, g: m if has_no_moment(m) else function(m, g), moments, grads, is_leaf=has_no_moment)


def scale_by_fairseq_adam(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation g -> sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), t counted from 1.

    Parameters that stay as they are (`config.parameters.stays`) have no moments (`optax.MaskedNode` stands in their place), and their
    update is 0. Where `accepted` (bool []) is given and does not hold, the state stays as it is, and the update, which is of no use then,
    is one of the old moments.
    """
    beta1, beta2, eps = config.beta1, config.beta2, config.eps

    def init(params: Any) -> AdamState:
        def moment(path: Any, leaf: jax.Array) -> Any:
            return optax.MaskedNode() if stays(key_path_parts(path), config) else jnp.zeros_like(leaf)

        mu, nu = (jax.tree_util.tree_map_with_path(moment, params) for _ in range(2))
        return AdamState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu)

    def update(
        grads: Any, state: AdamState, params: Any = None, *, accepted: jax.Array | bool = True, **others: Any
    ) -> tuple[Any, AdamState]:
        del params, others
        count = state.count + 1
        t = count.astype(jnp.result_type(float))
        correction = jnp.sqrt(one_minus_power(beta2, t)) / one_minus_power(beta1, t)
        mu = _map_moments(lambda m, g: _chosen(accepted, beta1 * m + (1.0 - beta1) * g, m), state.mu, grads)
        nu = _map_moments(lambda v, g: _chosen(accepted, beta2 * v + (1.0 - beta2) * g * g, v), state.nu, grads)

        def update_of(m: Any, v: Any, g: jax.Array) -> jax.Array:
            return jnp.zeros_like(g) if has_no_moment(m) else correction.astype(m.dtype) * m / (jnp.sqrt(v) + eps)

        updates = jax.tree.map(update_of, mu, nu, grads, is_leaf=has_no_moment)
        return updates, AdamState(_chosen(accepted, count, state.count), mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Returns g -> g * min(1, max_norm / (norm(g) + 1e-6)), the norm taken over all parameters together; 0 clips nothing."""

    def update(grads: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        del params
        if max_norm <= 0:
            return grads, state
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) + CLIP_EPS))
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def norms_by_part(grads: Any) -> dict[str, jax.Array]:
    """Returns the norm, float [], of each part of a tree of gradients, by name: the model's top-level modules (embedding, resnet, encoder,
    decoder), in the order of the tree. Squared, they add up to the square of the norm of all."""
    parts: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
        parts.setdefault(key_path_parts(path)[0], []).append(leaf)
    return {name: optax.tree.norm(leaves) for name, leaves in parts.items()}


def make_optimizer(config: OptimizerConfig, *, steps: int, frozen_norms: bool = False) -> optax.GradientTransformationExtraArgs:
    """Returns clip -> Adam -> decay of all parameters (biases, norms and embeddings too, as in OFA) -> -learning rate.

    What stays as it is does not decay: what the config says, which has no moments either, and with `frozen_norms` the scales and biases
    of the image front's batch norms, which are buffers in the official code. Its gradients must be 0 (`stop_frozen`).
    """

    def decays(path: Any, _: Any) -> bool:
        parts = key_path_parts(path)
        return not (stays(parts, config) or (frozen_norms and parts[0] == "resnet" and "norm" in parts[-2]))

    mask = functools.partial(jax.tree_util.tree_map_with_path, decays) if config.frozen or config.trained or frozen_norms else None
    return optax.chain(
        clip_by_global_norm(config.clip_norm),
        scale_by_fairseq_adam(config),
        optax.add_decayed_weights(config.weight_decay, mask=mask),
        _scale_by_rate(learning_rate(config, steps=steps)),
    )


def _scale_by_rate(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """optax's `scale_by_learning_rate`, with its state, whose count stays where an update is not accepted."""
    inner = optax.scale_by_learning_rate(schedule)

    def update(
        updates: Any, state: Any, params: Any = None, *, accepted: jax.Array | bool = True, **others: Any
    ) -> tuple[Any, optax.OptState]:
        del others
        updates, new = inner.update(updates, state, params)
        return updates, jax.tree.map(functools.partial(_chosen, accepted), new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def stop_frozen(params: Any, config: OptimizerConfig) -> Any:
    """Returns `params` with those that stay as they are cut off from differentiation: no gradient of them is computed."""

    def stopped(path: Any, leaf: jax.Array) -> jax.Array:
        return lax.stop_gradient(leaf) if stays(key_path_parts(path), config) else leaf

    return jax.tree_util.tree_map_with_path(stopped, params) if config.frozen or config.trained else params


def average(ema: Any, params: Any, *, config: OptimizerConfig, count: jax.Array) -> Any:
    """Returns d * ema + (1 - d) * params, d = min(ema_decay, (1 + count) / (10 + count)); the average of what stays as it is does too, as
    rounding would move it.

    count: updates made before this one. The ramp (TensorFlow's ExponentialMovingAverage) keeps random initial weights from staying in
    the average of a short run.
    """
    n = count.astype(jnp.result_type(float))
    d = jnp.minimum(config.ema_decay, (1.0 + n) / (10.0 + n))

    def averaged(path: Any, e: jax.Array, p: jax.Array) -> jax.Array:
        return e if stays(key_path_parts(path), config) else d.astype(e.dtype) * e + (1.0 - d).astype(e.dtype) * p

    return jax.tree_util.tree_map_with_path(averaged, ema, params)
