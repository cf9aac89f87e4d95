"""What a training step must take at least of a device, by component: operations, and bytes read from and written to memory.

The floor of a product is that of a program which reads its inputs and weights once, writes its result once, and does all else (norms,
activations, dropout, residuals, softmax, masks and bias) on the way. Forward it moves (read + written) numbers of the compute dtype and
its weights; backward it reads the result's gradient, the input and the weights and writes the gradients of both: (written + 2 read)
numbers, the weights, and their gradient in the parameters' dtype. Scores of attention, and the bias of positions, need not leave the chip.
The update reads parameter, gradient and both moments and writes all but the gradient; the average of weights is read and written.

Memory holds at least the state, its gradient, the batch, and what enters every layer until the backward pass comes to it.

Nothing is recomputed and nothing is sent; what rests in fast memory from one product to the next would be less, which chips' sizes forbid
at the batches that people train with.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from ofa_jax.config.schema import ModelConfig, RunConfig
from ofa_jax.models.operations import sequences_a_row, step_products
from ofa_jax.models.precision import policy

UPDATE = "optimizer"  # the component of the update
_UPDATE_PASSES, _AVERAGE_PASSES = 7, 2  # over all parameters


@dataclasses.dataclass(frozen=True)
class Floor:
    """What a component takes of one device in a step at least."""

    operations: float
    num_bytes: float

    def seconds(self, *, flops: float, memory_rate: float) -> float:
        """Returns the seconds at these rates, operations and bytes overlapping."""
        return max(self.operations / flops, self.num_bytes / memory_rate)


def step_floors(config: RunConfig, *, params_bytes: float, shards: int = 1, tensor: int = 1) -> Mapping[str, Floor]:
    """Returns the floors of a training step by component, as `models/operations` names them, and `UPDATE`.

    params_bytes: of the parameters that rest on the device. shards: devices that share the rows. tensor: that share a product.
    """
    dtypes = policy(config.precision)
    compute, param = dtypes.compute.itemsize, dtypes.param.itemsize
    devices, micros = shards * tensor, config.optimizer.accumulate
    operations: dict[str, float] = collections.defaultdict(float)
    num_bytes: dict[str, float] = collections.defaultdict(float)
    for one, passes in step_products(config):
        operations[one.component] += passes * one.operations / devices
        moved, weights = one.read + one.written, compute
        if passes > 1:
            moved, weights = moved + one.written + 2 * one.read, 2 * compute + param
        num_bytes[one.component] += compute * moved / devices + micros * weights * one.weights / tensor
    floors = {name: Floor(operations[name], num_bytes[name]) for name in operations}
    update = _UPDATE_PASSES + (_AVERAGE_PASSES if config.optimizer.ema_decay else 0)
    return floors | {UPDATE: Floor(0.0, update * params_bytes)}


def kept_bytes(config: RunConfig, *, shards: int = 1) -> float:
    """Returns the bytes of what enters the layers of encoder and decoder and the blocks of the front, of a device's part of a micro-batch:
    what a step keeps that computes all else again."""
    model, count = config.model, 0.0
    for block in config.data.row_blocks:
        patches = 0
        if block.image_px:
            count += block.rows * _front_inputs(model, block.image_px)
            patches = block.num_patches or (-(-block.image_px // model.resnet.stride)) ** 2
        if config.objective == "picture_words":
            continue
        sequences = block.rows * sequences_a_row(block) // block.num_places
        for place in range(block.num_places):
            text, target = block.lens_of(place)
            positions = model.encoder_layers * (text + patches) + model.decoder_layers * target
            count += sequences * positions * model.width
    return count * policy(config.precision).compute.itemsize / shards / config.optimizer.accumulate


def _front_inputs(model: ModelConfig, image_px: int) -> float:
    """Numbers that enter the blocks of the front, of one picture."""
    net = model.resnet
    side, channels, count = -(-image_px // net.stem_stride), net.base_width, 0.0
    side = -(-side // 2) if net.stem_pool else side
    for stage, (blocks, stride) in enumerate(zip(net.blocks, net.strides, strict=True)):
        count += side**2 * channels
        side, channels = -(-side // stride), net.base_width * 2**stage * net.expansion
        count += (blocks - 1) * side**2 * channels
    return count
