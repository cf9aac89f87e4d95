"""`launch/bench.py kernels`: the parts of the training step one by one, forward and backward, beside what they take at least.

A layer is what three layers take more than one, halved: its position bias, dropout and dropped paths are those of the step, and nothing of
the model is written again here. Floors (`models/floors`) are priced at rates measured in the same run: one large product, and one array
read and written.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ofa_jax.bench.steps import fastest, matmul_flops
from ofa_jax.bench.training import sized, work_of
from ofa_jax.config.check import check
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import RunConfig
from ofa_jax.models.attention import ATTENTION
from ofa_jax.models.encoder import Encoded
from ofa_jax.models.floors import UPDATE, Floor, step_floors
from ofa_jax.models.layers import dropout, layer_norm, row_keys, split_key
from ofa_jax.models.ofa import create, init_stats
from ofa_jax.models.precision import Policy, policy
from ofa_jax.parallel.machine import check_attention
from ofa_jax.train.loss import block_loss
from ofa_jax.train.optimizer import make_optimizer
from ofa_jax.train.pretraining import sample_patches

_LAYERS = (1, 3)  # of the two stacks whose difference is two layers
_COPIED = {"cpu": 2**26}  # numbers of the array that is read and written
_COPIED_ELSEWHERE = 2**29


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One part, forward and backward, on one device."""

    name: str
    seconds: float
    floor: Floor

    def line(self, *, flops: float, memory_rate: float) -> str:
        """Returns its line of the table, the floor at these rates."""
        floor = self.floor.seconds(flops=flops, memory_rate=memory_rate)
        share = f"{floor / self.seconds:7.0%}" if self.seconds > 0 else f"{'-':>7}"
        work = f"{self.floor.operations / 1e9:10,.1f} {self.floor.num_bytes / 1e6:10,.1f}"
        return f"  {self.name:28} {self.seconds * 1e3:10,.2f} {floor * 1e3:10,.2f} {share} {work}"


def report(flags: argparse.Namespace) -> str:
    """Returns the parts' times as lines, and writes all numbers to `flags.json` where that is given.

    Raises `UserError` where the config does not fit the flags or an attention does not run here.
    """
    attentions = _attentions(flags)
    config = work_of(flags, sized(flags, layers="unroll", remat="none"))
    flops, memory_rate = matmul_flops(policy(config.precision).compute), copy_rate(policy(config.precision).compute)
    kernels = time_kernels(config, attentions=attentions, repeats=flags.repeats)
    device = jax.devices()[0].device_kind
    if flags.json:
        numbers = {"device": device, "flops": flops, "memory_rate": memory_rate, "kernels": [dataclasses.asdict(one) for one in kernels]}
        flags.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return "\n".join(
        [
            f"kernels: {config.name}, {config.precision}, {device}: {flags.rows} sequences of {flags.source_len} and {flags.target_len} "
            f"tokens, {flags.num_patches} patches of {flags.image_px} px; a product {flops / 1e12:,.3g} TFLOP/s, memory "
            f"{memory_rate / 1e9:,.0f} GB/s",
            f"  {'forward and backward':28} {'ms':>10} {'floor ms':>10} {'of it':>7} {'GFLOP':>10} {'MB':>10}",
            *(one.line(flops=flops, memory_rate=memory_rate) for one in kernels),
        ]
    )


def _attentions(flags: argparse.Namespace) -> list[str]:
    names = flags.attention.split(",")
    for name in names:
        if name not in ATTENTION:
            raise ConfigError(f"--attention: found {name}, expected names out of {', '.join(sorted(ATTENTION))}, separated by commas")
        config = sized(flags, attention=name)
        check(config, 1)
        check_attention(config, jax.devices()[0].platform)
    return names


def copy_rate(dtype: np.dtype, *, repeats: int = 5) -> float:
    """Returns bytes a second that one large array of `dtype` is read and written with on one device, in place, the best of `repeats`: pages
    of a new array would cost a CPU more than the copy."""
    device = jax.devices()[0]
    x = jnp.ones(_COPIED.get(device.platform, _COPIED_ELSEWHERE), dtype, device=device)
    moved = jax.jit(lambda x: x + 1, donate_argnums=0)

    def move() -> jax.Array:
        nonlocal x
        x = moved(x)
        return x

    return 2.0 * x.nbytes / fastest(move, repeats)


def time_kernels(config: RunConfig, *, attentions: list[str], repeats: int) -> list[Kernel]:
    """Returns the times of the parts of the step of `config`, which has one block (`protocols.same_work`); of layers, with each of
    `attentions`."""
    [block] = config.data.row_blocks
    bench = _Bench(config, repeats)
    grid = (-(-block.image_px // config.model.resnet.stride)) ** 2 if block.image_px else 0
    found = [bench.resnet()] if block.image_px else []
    for name in attentions:
        changes: dict[str, Any] = {"attention": name}
        chosen = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
        found += [
            bench.layer(chosen, "encoder", f"encoder layer, {name}", grid),
            bench.layer(chosen, "decoder", f"decoder layer, {name}", grid),
        ]
    patches = block.num_patches or grid
    shape = (block.rows, block.source_len + patches, config.model.width)
    return [*found, bench.logits(), bench.update(), bench.norm(shape), bench.drop(shape)]


def gradients(function: Callable[..., Any], wanted: Any, *fixed: Any) -> Callable[[], Any]:
    """Returns a call of the compiled forward and backward pass of `function` (wanted, *fixed) -> an array, by the pytree `wanted`.

    The result is taken as its own gradient, so that no constant helps the compiler; the result and all gradients are written.
    """

    @jax.jit
    def run(wanted: Any, *fixed: Any) -> Any:
        out, back = jax.vjp(lambda wanted: function(wanted, *fixed), wanted)
        return out, back(out)

    return lambda: run(wanted, *fixed)


class _Bench:
    """Draws what the parts read, and times them."""

    def __init__(self, config: RunConfig, repeats: int):
        self.config, self.repeats = config, repeats
        [self.block] = config.data.row_blocks
        self.policy: Policy = policy(config.precision)
        self.key = jax.random.key(0)

    def _time(self, name: str, run: Callable[[], Any], floor: Floor) -> Kernel:
        return Kernel(name, fastest(run, self.repeats), floor)

    def _draw(self, *shape: int) -> jax.Array:
        return jax.random.normal(self.key, shape, self.policy.compute)

    def _ids(self, length: int) -> jax.Array:
        return jax.random.randint(self.key, (self.block.rows, length), 4, 200)

    def _floors(self, config: RunConfig, part: str) -> Floor:
        chosen = [one for name, one in step_floors(config, params_bytes=0.0).items() if name.split("/")[0] == part]
        return Floor(sum(one.operations for one in chosen), sum(one.num_bytes for one in chosen))

    def resnet(self) -> Kernel:
        """The image front."""
        config, block = self.config, self.block
        graphdef, params = create(config.model, config.vocab, self.key, precision=config.precision)
        stats = init_stats(config.model, precision=config.precision)
        images = jax.random.randint(self.key, (block.rows, block.image_px, block.image_px, 3), 0, 256, jnp.uint8)
        front, others = _split(params, "resnet")

        def features(front: Any, others: Any, images: jax.Array) -> jax.Array:
            model = nnx.merge(graphdef, nnx.merge_state(front, others))
            return model.embed_images(images, None, stats=stats, train=True, key=row_keys(self.key, block.rows))[0]

        return self._time("resnet", gradients(features, front, others, images), self._floors(config, "resnet"))

    def layer(self, config: RunConfig, part: str, name: str, grid: int) -> Kernel:
        """A layer of the encoder or the decoder."""
        stacks = []
        for count in _LAYERS:
            layers: dict[str, Any] = {f"{part}_layers": count}
            one = dataclasses.replace(config, model=dataclasses.replace(config.model, **layers))
            run = self._encoder(one, grid) if part == "encoder" else self._decoder(one, grid)
            stacks.append((fastest(run, self.repeats), self._floors(one, part)))
        (first_s, first), (last_s, last) = stacks
        more = _LAYERS[1] - _LAYERS[0]
        floor = Floor((last.operations - first.operations) / more, (last.num_bytes - first.num_bytes) / more)
        return Kernel(name, (last_s - first_s) / more, floor)

    def _encoder(self, config: RunConfig, grid: int) -> Callable[[], Any]:
        block = self.block
        graphdef, params = create(config.model, config.vocab, self.key, precision=config.precision)
        own, others = _split(params, "encoder")
        keys = row_keys(self.key, block.rows)
        patch_ids = sample_patches(keys, num_patches=grid, keep=block.num_patches) if block.num_patches else None
        features = self._draw(block.rows, grid, config.model.resnet.out_channels) if grid else None
        ids = self._ids(block.source_len)

        def states(own: Any, others: Any, ids: jax.Array, features: Any, patch_ids: Any, keys: jax.Array) -> jax.Array:
            model = nnx.merge(graphdef, nnx.merge_state(own, others))
            return model.encode(ids, features=features, patch_ids=patch_ids, key=keys).states

        return gradients(states, own, others, ids, features, patch_ids, keys)

    def _decoder(self, config: RunConfig, grid: int) -> Callable[[], Any]:
        block = self.block
        graphdef, params = create(config.model, config.vocab, self.key, precision=config.precision)
        own, others = _split(params, "decoder")
        patches = block.num_patches or grid
        length, ids = block.source_len + patches, self._ids(block.target_len)
        positions = self._draw(block.rows if block.num_patches else 1, length, config.model.width)
        mask = jnp.ones((block.rows, length), bool)

        def hidden(given: Any, others: Any, ids: jax.Array, mask: jax.Array, positions: jax.Array, keys: jax.Array) -> jax.Array:
            own, states = given
            model = nnx.merge(graphdef, nnx.merge_state(own, others))
            return model.decode(Encoded(states, mask, positions), ids, key=keys)

        states = self._draw(block.rows, length, config.model.width)
        return gradients(hidden, (own, states), others, ids, mask, positions, row_keys(self.key, block.rows))

    def logits(self) -> Kernel:
        """Logits and loss."""
        config, block = self.config, self.block
        graphdef, params = create(config.model, config.vocab, self.key, precision=config.precision)
        own, others = _split(params, "embedding")
        targets = self._ids(block.target_len)

        def loss(given: Any, others: Any, targets: jax.Array) -> jax.Array:
            own, hidden = given
            model = nnx.merge(graphdef, nnx.merge_state(own, others))
            return block_loss(
                hidden, logits_of=model.logits, target_ids=targets, confidence=jnp.ones(block.rows), num_tasks=1,
                task_ids=jnp.zeros(block.rows, jnp.int32), vocab_size=config.vocab.size, config=config.loss,
            ).sums.loss  # fmt: skip

        hidden = self._draw(block.rows, block.target_len, config.model.width)
        return self._time("logits and loss", gradients(loss, (own, hidden), others, targets), self._floors(config, "logits"))

    def update(self) -> Kernel:
        """The optimizer's update of all parameters."""
        config = self.config
        _, params = create(config.model, config.vocab, self.key, precision=config.precision)
        tx = make_optimizer(config.optimizer, steps=config.steps)
        state, grads = tx.init(params), jax.tree.map(jnp.ones_like, params)

        @jax.jit
        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        floor = step_floors(config, params_bytes=size)[UPDATE]
        return self._time("optimizer, all parameters", lambda: update(params, state, grads), floor)

    def norm(self, shape: tuple[int, ...]) -> Kernel:
        """LayerNorm of what enters an encoder layer: reads and writes, backward reads twice as much."""
        x, width, dtypes = self._draw(*shape), shape[-1], self.policy

        def norm(given: Any) -> jax.Array:
            return layer_norm(*given, self.config.model.layer_norm_eps, dtypes.accum)

        run = gradients(norm, (x, jnp.ones(width, dtypes.param), jnp.zeros(width, dtypes.param)))
        return self._time("layer norm", run, Floor(0.0, 5.0 * x.nbytes))

    def drop(self, shape: tuple[int, ...]) -> Kernel:
        """Dropout of the same, one key a row."""
        x, keys = self._draw(*shape), row_keys(self.key, shape[0])
        run = gradients(lambda x, keys: dropout(x, self.config.model.dropout, split_key(keys, 1)[0]), x, keys)
        return self._time("dropout", run, Floor(0.0, 4.0 * x.nbytes))


def _split(params: nnx.State, part: str) -> tuple[nnx.State, nnx.State]:
    """Returns (the parameters of one part of the model, all others)."""
    own, others = nnx.split_state(params, lambda path, _: path[0] == part, ...)
    return own, others
