"""Whether the attention that a run trains with gives, on the devices that are here, what the reference gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from ofa_jax.bench.noise import noise_batch
from ofa_jax.config.schema import MeshConfig, RunConfig
from ofa_jax.doctor.report import Finding
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.pretraining import Pretraining

_ROWS = 2
_MOST = 2.0  # times the reference's own error in the run's precision, both against the reference in f32
_ROUNDING = 1e-4  # relative, of a gradient of either in f32: sums in another order


def check_attention(config: RunConfig) -> list[Finding]:
    """Returns whether loss and gradients of the run's attention are the reference's, up to what its precision errs itself: on one device of
    this host, for the run's own widths, heads, pictures and lengths, with one layer a stack, two rows a block, and noise.

    Errors are norms of differences over norms. An attention that cannot run here raises what JAX raises.
    """
    exact = gradients(_small(config, attention="reference", precision="f32"))
    theirs = errors(gradients(_small(config, attention="reference", precision=config.precision)), exact)
    ours = errors(gradients(_small(config, attention=config.model.attention, precision=config.precision)), exact)
    excess = {name: error / max(theirs[name], _ROUNDING) for name, error in ours.items()}
    worst = max(excess, key=lambda name: excess[name])
    numbers: dict[str, float | int | str | None] = {"error": ours[worst], "reference_error": theirs[worst], "of": worst}
    kind = jax.local_devices()[0].device_kind
    name = f"model.attention={config.model.attention} on {kind}"
    said = f"{name}: {worst} differs by {ours[worst]:.2g}, the reference's own by {theirs[worst]:.2g}"
    if excess[worst] <= _MOST:
        return [Finding("attention", "ok", f"{said}, the worst of {len(ours)} gradients", numbers=numbers)]
    advice = "train with --config.model.attention=reference, and tell us"
    return [Finding("attention", "FAIL", said, f"at most {_MOST * max(theirs[worst], _ROUNDING):.2g}", advice, numbers)]


def _small(config: RunConfig, *, attention: Any, precision: Any) -> RunConfig:
    net = config.model.resnet
    model = dataclasses.replace(
        config.model,
        attention=attention,
        encoder_layers=1,
        decoder_layers=1,
        resnet=dataclasses.replace(net, blocks=(1,) * len(net.blocks)),
    )
    blocks = tuple(dataclasses.replace(block, rows=_ROWS, classes=()) for block in config.data.blocks)
    return dataclasses.replace(config, model=model, precision=precision, data=dataclasses.replace(config.data, blocks=blocks))


def gradients(config: RunConfig) -> dict[str, np.ndarray]:
    """Returns the loss of a batch of noise and its gradient by every parameter, f64 arrays of the host by name, made on the first device of
    this host from the same parameters and keys each time; dropout as the config says."""
    small = dataclasses.replace(config, mesh=MeshConfig())
    objective, mesh = Pretraining(small), make_mesh(MeshConfig(), devices=jax.local_devices()[:1])

    @jax.jit
    def made(blocks: Any) -> Any:
        params, stats = objective.init(jax.random.key(0))

        def loss(params: Any) -> Any:
            return objective.loss(params, stats, blocks, jax.random.key(1), num_tasks=1)[0]

        value, grads = jax.value_and_grad(loss)(params)
        return {"loss": value} | {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads)}

    with jax.set_mesh(mesh):
        found = jax.device_get(made(noise_batch(small, mesh)))
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def errors(found: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns norms of differences over norms, which count for no less than a thousandth of the largest: biases of keys have no gradient
    but rounding, as a softmax does not see what all scores share. Infinity where a number is not finite."""
    norms = {name: float(np.linalg.norm(value)) for name, value in exact.items()}
    least = 1e-3 * max(norms.values())
    off = {name: float(np.linalg.norm(found[name] - value)) / max(norms[name], least) for name, value in exact.items()}
    return {name: error if np.isfinite(error) else np.inf for name, error in off.items()}
