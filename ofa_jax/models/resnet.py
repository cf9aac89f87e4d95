"""The bottleneck ResNet front of OFA: stem, pool and three stages; channels last; no fourth stage, pooling or classifier.

Paddings are explicit and symmetric as in PyTorch ("SAME" pads differently on even sizes and would shift the features). A stage's
stride sits on the 3x3 convolution of its first block, which is also the only one with a projected shortcut; the remaining blocks of
a stage are equal and stored stacked.

Batch norm keeps no state: running statistics come in as `stats` and go out again. `batch` mode normalises over groups of
`norm_group` consecutive images (0: the whole stream, on all devices) and moves the running statistics once per call by PyTorch's
rule, with momentum as the weight of the new value and the unbiased variance; moments of groups are averaged. `frozen` mode uses
the running statistics, never writes them, and gives scale and bias no gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ofa_jax.config.schema import IMAGENET_DEVIATION, IMAGENET_MEAN, ModelConfig, ResNetConfig
from ofa_jax.models.convolution import convolve
from ofa_jax.models.layers import drop_path, drop_path_rates, fold_key, parameter, run_layers
from ofa_jax.models.precision import Policy
from ofa_jax.parallel import layout

Stats = dict[str, Any]  # nested; leaves {"mean": [C], "var": [C]}, with a leading axis for a stage's stacked blocks


def max_pool(x: jax.Array) -> jax.Array:
    """Returns the 3x3 maximum of x [R, h, w, C] with stride 2 and one cell of -inf around it."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


class BatchNorm(nnx.Module):
    """Affine batch norm over images and pixels; see the module's docstring for its modes."""

    def __init__(self, channels: int, config: ModelConfig, *, policy: Policy, stack: int = 0):
        self.scale = parameter((channels,), ("norm",), value=1.0, policy=policy, stack=stack)
        self.bias = parameter((channels,), ("norm",), policy=policy, stack=stack)
        self.mode, self.group = config.image_norm, config.norm_group
        self.eps, self.momentum, self.accum = config.resnet.norm_eps, config.resnet.norm_momentum, policy.accum

    def __call__(self, x: jax.Array, stats: Stats, *, train: bool) -> tuple[jax.Array, Stats]:
        """x [R, h, w, C], stats {"mean": [C], "var": [C]} -> normalised x in its dtype, and the statistics to keep.

        Raises:
          ValueError: the number of images is not a multiple of `norm_group`.
        """
        scale, bias = self.scale[...].astype(self.accum), self.bias[...].astype(self.accum)
        if self.mode == "frozen" or not train:
            if self.mode == "frozen":
                scale, bias = lax.stop_gradient(scale), lax.stop_gradient(bias)
            gain = scale * lax.rsqrt(stats["var"].astype(self.accum) + self.eps)
            return (x * gain + (bias - stats["mean"].astype(self.accum) * gain)).astype(x.dtype), stats
        images = x.shape[0]
        group = self.group or images
        if images % group:
            raise ValueError(f"model.norm_group: found {images} images in a stream, expected a multiple of {group}")
        wide = x.reshape(images // group, group, *x.shape[1:]).astype(self.accum)
        count = np.prod(wide.shape[1:4]) * (1 if self.group else layout.num_shards())
        mean = jnp.mean(wide, (1, 2, 3), keepdims=True)
        var = jnp.mean(jnp.square(wide - mean), (1, 2, 3), keepdims=True)
        if not self.group and layout.num_shards() > 1:  # the whole stream lies on all devices
            mean, var = _moments_of_all(mean, var, near=stats["mean"].astype(self.accum))
        y = (wide - mean) * (lax.rsqrt(var + self.eps) * scale) + bias
        kept = lax.stop_gradient({"mean": jnp.mean(mean, 0).reshape(-1), "var": jnp.mean(var, 0).reshape(-1) * (count / max(count - 1, 1))})
        new = {name: stats[name] + self.momentum * (kept[name].astype(stats[name].dtype) - stats[name]) for name in kept}
        return y.reshape(x.shape).astype(x.dtype), new


def _moments_of_all(mean: jax.Array, var: jax.Array, *, near: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the moments over all devices' images from those of each, asked for at once.

    The variance of all is E[var + (mean - n)^2] - (E[mean] - n)^2 for any n. With `near`, the running mean, for n, little cancels.
    """
    moved = mean - near
    moved, square = layout.received(layout.mean(jnp.stack([moved, var + jnp.square(moved)])))
    return near + moved, square - jnp.square(moved)


def _kernel(size: int, channels_in: int, channels_out: int, *, policy: Policy, stack: int = 0) -> nnx.Param:
    """A convolution kernel [size, size, in, out], Kaiming-normal by fan-out (torchvision's rule)."""
    std = (2.0 / (size * size * channels_out)) ** 0.5
    shape, axes = (size, size, channels_in, channels_out), (None, None, "channels_in", "channels_out")
    return parameter(shape, axes, std=std, policy=policy, stack=stack)


class Bottleneck(nnx.Module):
    """1x1, 3x3 (carries the stride), 1x1 convolutions with batch norms, plus the shortcut, then ReLU."""

    def __init__(self, channels_in: int, width: int, config: ModelConfig, *, stride: int, project: bool, policy: Policy, stack: int = 0):
        out = width * config.resnet.expansion
        self.kernel1 = _kernel(1, channels_in, width, policy=policy, stack=stack)
        self.kernel2 = _kernel(3, width, width, policy=policy, stack=stack)
        self.kernel3 = _kernel(1, width, out, policy=policy, stack=stack)
        self.norm1 = BatchNorm(width, config, policy=policy, stack=stack)
        self.norm2 = BatchNorm(width, config, policy=policy, stack=stack)
        self.norm3 = BatchNorm(out, config, policy=policy, stack=stack)
        self.shortcut = _kernel(1, channels_in, out, policy=policy) if project else None
        self.shortcut_norm: Any = BatchNorm(out, config, policy=policy) if project else None
        self.stride, self.method = stride, config.convolution

    def __call__(
        self, x: jax.Array, stats: Stats, *, train: bool, rate: jax.Array | float = 0.0, key: jax.Array | None = None
    ) -> tuple[jax.Array, Stats]:
        """x [R, h, w, C] -> ([R, h/stride, w/stride, C'], new statistics); `key` drops the branch of whole images at `rate`."""
        new: Stats = {}

        def conv(x, kernel, stride=1, padding=0):
            return convolve(x, kernel[...].astype(x.dtype), stride=stride, padding=padding, method=self.method)

        h, new["norm1"] = self.norm1(conv(x, self.kernel1), stats["norm1"], train=train)
        h, new["norm2"] = self.norm2(conv(jax.nn.relu(h), self.kernel2, self.stride, 1), stats["norm2"], train=train)
        h, new["norm3"] = self.norm3(conv(jax.nn.relu(h), self.kernel3), stats["norm3"], train=train)
        if self.shortcut is not None:
            x, new["shortcut"] = self.shortcut_norm(conv(x, self.shortcut, self.stride), stats["shortcut"], train=train)
        return jax.nn.relu(x + drop_path(h, rate, key)), new


class ResNet(nnx.Module):
    """Normalised pictures [R, height, width, 3] -> features [R, h, w, C]."""

    def __init__(self, config: ModelConfig, *, policy: Policy):
        net = config.resnet
        self.stem = _kernel(net.stem_kernel, 3, net.base_width, policy=policy)
        self.stem_norm = BatchNorm(net.base_width, config, policy=policy)
        channels = net.base_width
        for stage, (blocks, stride) in enumerate(zip(net.blocks, net.strides, strict=True), start=1):
            width = net.base_width * 2 ** (stage - 1)
            first = Bottleneck(channels, width, config, stride=stride, project=True, policy=policy)
            setattr(self, f"stage{stage}_first", first)
            channels = width * net.expansion
            if blocks > 1:
                rest = Bottleneck(channels, width, config, stride=1, project=False, policy=policy, stack=blocks - 1)
                setattr(self, f"stage{stage}_rest", rest)
        self.config, self.policy = config, policy

    def __call__(self, pixels: jax.Array, *, stats: Stats, train: bool, key: jax.Array | None = None) -> tuple[jax.Array, Stats]:
        """pixels [R, height, width, 3] normalised to about [-1, 1] -> (features [R, h, w, C] in the compute dtype, new statistics)."""
        config, net = self.config, self.config.resnet
        key = key if net.drop_path_rate > 0 else None
        new: Stats = {}
        x = pixels.astype(self.policy.compute)
        kernel = self.stem[...].astype(x.dtype)
        x = convolve(x, kernel, stride=net.stem_stride, padding=net.stem_kernel // 2, method=config.convolution)
        x, new["stem"] = self.stem_norm(x, stats["stem"], train=train)
        x = jax.nn.relu(x)
        if net.stem_pool:
            x = max_pool(x)
        for stage, blocks in enumerate(net.blocks, start=1):
            name = f"stage{stage}"
            old = stats[name]
            x, first = getattr(self, f"{name}_first")(x, old["first"], train=train)
            new[name] = {"first": first}
            if blocks == 1:
                continue
            stage_key = None if key is None else fold_key(key, stage)

            def step(block, x, xs, stage_key=stage_key):
                block_stats, rate, index = xs
                block_key = None if stage_key is None else fold_key(stage_key, index)
                return block(x, block_stats, train=train, rate=rate, key=block_key)

            rates = jnp.asarray(drop_path_rates(net.drop_path_rate, blocks)[1:])
            xs = (old["rest"], rates, jnp.arange(1, blocks))
            # Convolutions are no "dots": any remat policy keeps only what enters a block.
            x, new[name]["rest"] = run_layers(
                getattr(self, f"{name}_rest"), step, x, xs, num=blocks - 1, mode=config.layers, remat=config.remat
            )
        return x, new


def init_stats(config: ResNetConfig, dtype: np.dtype) -> Stats:
    """Returns the running statistics of an untrained network: mean 0, variance 1."""

    def moments(channels: int, stack: int = 0) -> Stats:
        shape = (stack, channels) if stack else (channels,)
        return {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, dtype)}

    stats: Stats = {"stem": moments(config.base_width)}
    for stage, blocks in enumerate(config.blocks, start=1):
        width = config.base_width * 2 ** (stage - 1)
        out = width * config.expansion

        def block(stack: int, width: int = width, out: int = out) -> Stats:
            return {"norm1": moments(width, stack), "norm2": moments(width, stack), "norm3": moments(out, stack)}

        stats[f"stage{stage}"] = {"first": {**block(0), "shortcut": moments(out)}}
        if blocks > 1:
            stats[f"stage{stage}"]["rest"] = block(blocks - 1)
    return stats


def normalise_images(images: jax.Array, hole_mask: jax.Array | None, *, scale: str = "half", accum: np.dtype) -> jax.Array:
    """Returns uint8 pictures [R, h, w, 3] as (x/255 - mean) / deviation, with the central half-side square set to 0 where `hole_mask` [R].

    scale: `ModelConfig.pixel_scale`; mean and deviation are 0.5, or ImageNet's by channel (the official
    `--imagenet-default-mean-and-std`). The hole is cut after normalisation, so it has the mean's colour (OFA's image infilling: mid grey).
    """
    pixels = images.astype(accum) / 255.0
    if scale == "imagenet":
        pixels = (pixels - np.array(IMAGENET_MEAN, accum)) / np.array(IMAGENET_DEVIATION, accum)
    else:
        pixels = (pixels - 0.5) / 0.5
    if hole_mask is None:
        return pixels
    height, width = images.shape[1:3]
    hole = np.zeros((height, width), bool)
    hole[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2] = True
    return jnp.where(hole_mask[:, None, None, None] & hole[None, :, :, None], 0.0, pixels)
