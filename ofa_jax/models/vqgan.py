"""A VQGAN: pictures to a grid of codes and back, as taming-transformers' (Esser et al. 2021, arXiv 2012.09841), channels last.

Two quantisers. Gumbel: a 1x1 convolution gives a score for every code; the code of a cell is the best one. The original draws Gumbel
noise in evaluation too, so that two calls on one picture differ; here codes are the plain argmax, and the draw is an option with a
key. Nearest: the code of a cell is the nearest entry of the codebook. Pixels are in [-1, 1]; `to_uint8` truncates, as the original does.

Parameters are drawn as PyTorch draws them, but for the last convolution of every residual branch, which begins at 0 (Zhang et al. 2019,
arXiv 1901.09321, section 3.1): the network begins as its shortcuts, nearly linear, and learns much faster.

The same network serves any picture side that is a multiple of the stride: attention is at a level, not at a resolution.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ofa_jax.config.schema import VQGANConfig
from ofa_jax.models.convolution import Padding, convolve
from ofa_jax.models.layers import draw_params, parameter
from ofa_jax.models.precision import Policy, policy

AROUND, BEHIND = 1, (0, 1)  # zeros on all sides of a picture, or at its bottom and right only (before a stride)


class Convolution(nnx.Module):
    """A convolution with bias; kernel [k, k, C, C'] and bias ~ N(0, 1 / (3 fan_in)), the variance of PyTorch's uniform default, or 0."""

    def __init__(
        self,
        size: int,
        num_in: int,
        num_out: int,
        config: VQGANConfig,
        *,
        policy: Policy,
        stride: int = 1,
        padding: Padding = 0,
        zero: bool = False,
    ):
        """zero: kernel and bias begin at 0."""
        axes, std = (None, None, "channels_in", "channels_out"), None if zero else (3 * size * size * num_in) ** -0.5
        self.kernel = parameter((size, size, num_in, num_out), axes, std=std, policy=policy)
        # Else not 0: behind a group norm a flat picture without offsets keeps the signs of its channels alone, and with them no colour.
        self.bias = parameter((num_out,), axes[3:], std=std, policy=policy)
        self.stride, self.padding, self.method, self.compute = stride, padding, config.convolution, policy.compute

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, h, w, C] -> [B, h', w', C'] in the compute dtype."""
        x = x.astype(self.compute)
        y = convolve(x, self.kernel[...].astype(x.dtype), stride=self.stride, padding=self.padding, method=self.method)
        return y + self.bias[...].astype(x.dtype)


class GroupNorm(nnx.Module):
    """Affine norm over the channels of a group, and over all pixels or each alone, followed by x * sigmoid(x) where `swish`.

    Over all pixels is taming's. It takes the picture's mean out of a group, and with it most of a flat colour, and makes a cell's code
    depend on how large a picture it is in. Norms of each pixel do neither.
    """

    def __init__(self, channels: int, config: VQGANConfig, *, policy: Policy):
        self.scale = parameter((channels,), ("norm",), value=1.0, policy=policy)
        self.bias = parameter((channels,), ("norm",), policy=policy)
        self.groups, self.over, self.eps, self.accum = config.norm_groups, config.norm_over, config.norm_eps, policy.accum

    def __call__(self, x: jax.Array, *, swish: bool = True) -> jax.Array:
        """x [B, h, w, C] -> the same shape and dtype; statistics in `policy.accum`."""
        wide = x.astype(self.accum)
        centred = wide - self._group_means(wide)
        var = self._group_means(jnp.square(centred))
        y = centred * (lax.rsqrt(var + self.eps) * self.scale[...].astype(self.accum)) + self.bias[...].astype(self.accum)
        return (jax.nn.swish(y) if swish else y).astype(x.dtype)

    def _group_means(self, x: jax.Array) -> jax.Array:
        """x [B, h, w, C] -> the means over group, and pixels where `over` says so, of each channel: [B, 1 or h, 1 or w, C].

        Where the pixels are averaged they are so first: all that is as large as the picture stays in its own layout.
        """
        if self.over == "picture":
            x = jnp.mean(x, (1, 2), keepdims=True)
        channels = x.shape[-1]
        means = jnp.mean(x.reshape(*x.shape[:-1], self.groups, -1), -1)
        return jnp.repeat(means, channels // self.groups, -1)


class ResidualBlock(nnx.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), 3x3; x through a 1x1 convolution where the widths differ."""

    def __init__(self, num_in: int, num_out: int, config: VQGANConfig, *, policy: Policy):
        self.norm1 = GroupNorm(num_in, config, policy=policy)
        self.conv1 = Convolution(3, num_in, num_out, config, policy=policy, padding=AROUND)
        self.norm2 = GroupNorm(num_out, config, policy=policy)
        self.conv2 = Convolution(3, num_out, num_out, config, policy=policy, padding=AROUND, zero=True)
        self.shortcut: Any = Convolution(1, num_in, num_out, config, policy=policy) if num_in != num_out else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, h, w, C] -> [B, h, w, C']."""
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return (x if self.shortcut is None else self.shortcut(x)) + h


class PixelAttention(nnx.Module):
    """x + attention of one head over all pixels, scores divided by the square root of the channels."""

    def __init__(self, channels: int, config: VQGANConfig, *, policy: Policy):
        self.norm = GroupNorm(channels, config, policy=policy)
        self.query, self.key, self.value = (Convolution(1, channels, channels, config, policy=policy) for _ in range(3))
        self.out = Convolution(1, channels, channels, config, policy=policy, zero=True)
        self.accum = policy.accum

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, h, w, C] -> the same shape."""
        rows, _, _, channels = x.shape
        h = self.norm(x, swish=False)
        query, key, value = (part(h).reshape(rows, -1, channels) for part in (self.query, self.key, self.value))
        scores = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=self.accum) * channels**-0.5
        mixed = jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(scores).astype(x.dtype), value)
        return x + self.out(mixed.reshape(x.shape))


class Level(nnx.Module):
    """The residual blocks of one picture side, each followed by attention where the config has it, and the change of side after them."""

    def __init__(self, level: int, num_in: int, config: VQGANConfig, *, num_blocks: int, resize: str, policy: Policy):
        """resize: "down" (3x3 of stride 2), "up" (each pixel twice, then 3x3) or ""."""
        out = config.level_width(level)
        self.num_blocks, self.attends, self.resize = num_blocks, level in config.attention_levels, resize
        for i in range(num_blocks):
            setattr(self, f"block{i}", ResidualBlock(num_in if i == 0 else out, out, config, policy=policy))
            if self.attends:
                setattr(self, f"attention{i}", PixelAttention(out, config, policy=policy))
        if resize:
            stride, padding = (2, BEHIND) if resize == "down" else (1, AROUND)
            self.resample = Convolution(3, out, out, config, policy=policy, stride=stride, padding=padding)

    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.num_blocks):
            x = getattr(self, f"block{i}")(x)
            if self.attends:
                x = getattr(self, f"attention{i}")(x)
        if not self.resize:
            return x
        return self.resample(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2) if self.resize == "up" else x)


class Middle(nnx.Module):
    """Block, attention, block: at the smallest side of encoder and decoder."""

    def __init__(self, channels: int, config: VQGANConfig, *, policy: Policy):
        self.block0 = ResidualBlock(channels, channels, config, policy=policy)
        self.attention = PixelAttention(channels, config, policy=policy)
        self.block1 = ResidualBlock(channels, channels, config, policy=policy)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.block1(self.attention(self.block0(x)))


class Encoder(nnx.Module):
    """Pixels [B, H, W, 3] -> [B, H / stride, W / stride, latent_width]."""

    def __init__(self, config: VQGANConfig, *, policy: Policy):
        self.levels = len(config.multiples)
        self.conv_in = Convolution(3, 3, config.width, config, policy=policy, padding=AROUND)
        channels = config.width
        for level in range(self.levels):
            resize = "down" if level < self.levels - 1 else ""
            setattr(self, f"level{level}", Level(level, channels, config, num_blocks=config.num_blocks, resize=resize, policy=policy))
            channels = config.level_width(level)
        self.middle = Middle(channels, config, policy=policy)
        self.norm = GroupNorm(channels, config, policy=policy)
        self.conv_out = Convolution(3, channels, config.latent_width, config, policy=policy, padding=AROUND)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        x = self.conv_in(pixels)
        for level in range(self.levels):
            x = getattr(self, f"level{level}")(x)
        return self.conv_out(self.norm(self.middle(x)))


class Decoder(nnx.Module):
    """[B, h, w, latent_width] -> pixels [B, h * stride, w * stride, 3], about [-1, 1] and not cut to it."""

    def __init__(self, config: VQGANConfig, *, policy: Policy):
        self.levels = len(config.multiples)
        channels = config.level_width(self.levels - 1)
        self.conv_in = Convolution(3, config.latent_width, channels, config, policy=policy, padding=AROUND)
        self.middle = Middle(channels, config, policy=policy)
        for level in reversed(range(self.levels)):
            resize = "up" if level else ""
            setattr(self, f"level{level}", Level(level, channels, config, num_blocks=config.num_blocks + 1, resize=resize, policy=policy))
            channels = config.level_width(level)
        self.norm = GroupNorm(channels, config, policy=policy)
        self.conv_out = Convolution(3, channels, 3, config, policy=policy, padding=AROUND)

    def last_features(self, x: jax.Array) -> jax.Array:
        """Returns what the last convolution sees, [B, h * stride, w * stride, width]."""
        x = self.middle(self.conv_in(x))
        for level in reversed(range(self.levels)):
            x = getattr(self, f"level{level}")(x)
        return self.norm(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv_out(self.last_features(x))


class VQGAN(nnx.Module):
    """Encoder, quantiser, codebook [num_codes, code_width] and decoder."""

    def __init__(self, config: VQGANConfig, *, policy: Policy):
        self.config, self.policy = config, policy
        self.encoder = Encoder(config, policy=policy)
        # The Gumbel quantiser projects what the encoder gives; the nearest one compares it with the entries of the codebook.
        inner = config.latent_width if config.quantizer == "gumbel" else config.code_width
        self.pre_quantizer = Convolution(1, config.latent_width, inner, config, policy=policy)
        if config.quantizer == "gumbel":
            self.scorer = Convolution(1, inner, config.num_codes, config, policy=policy)
        # PyTorch's defaults and taming's: N(0, 1), and the variance of U(-1 / n, 1 / n).
        std = 1.0 if config.quantizer == "gumbel" else 3**-0.5 / config.num_codes
        self.codebook = parameter((config.num_codes, config.code_width), (None, None), std=std, policy=policy)
        self.post_quantizer = Convolution(1, config.code_width, config.latent_width, config, policy=policy)
        self.decoder = Decoder(config, policy=policy)

    def latents(self, pixels: jax.Array) -> jax.Array:
        """pixels [B, H, W, 3] in [-1, 1] -> h [B, H / stride, W / stride, C], what the quantiser sees."""
        return self.pre_quantizer(self.encoder(pixels))

    def code_scores(self, latents: jax.Array) -> jax.Array:
        """h [B, h, w, C] -> [B, h, w, num_codes] in `policy.accum`: the quantiser's scores, or minus half the squared distance to each
        entry but for what is the same for all entries."""
        accum = self.policy.accum
        if self.config.quantizer == "gumbel":
            kernel, bias = self.scorer.kernel[0, 0], self.scorer.bias[...].astype(accum)
            scores = jnp.einsum("bhwc,cn->bhwn", latents, kernel.astype(latents.dtype), preferred_element_type=accum)
            return scores + bias
        table = self.codebook[...].astype(accum)
        return jnp.einsum("bhwc,nc->bhwn", latents.astype(accum), table) - 0.5 * jnp.sum(jnp.square(table), 1)

    def encode(self, pixels: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """pixels [B, H, W, 3] in [-1, 1] -> codes int32 [B, H / stride, W / stride]: the best, or with `key` drawn as the original does, by
        Gumbel noise on the scores (the Gumbel quantiser only). Of equal scores the lowest code wins."""
        scores = self.code_scores(self.latents(pixels))
        if key is not None:
            if self.config.quantizer != "gumbel":
                raise ValueError("encode: found a key for the nearest quantiser, expected none: only the Gumbel quantiser draws codes")
            scores = scores + jax.random.gumbel(key, scores.shape, scores.dtype)
        return jnp.argmax(scores, -1).astype(jnp.int32)

    def decode_entries(self, entries: jax.Array) -> jax.Array:
        """Entries of the codebook, or mixtures of them, [B, h, w, code_width] -> pixels [B, h * stride, w * stride, 3]."""
        return self.decoder(self.post_quantizer(entries))

    def decode(self, codes: jax.Array) -> jax.Array:
        """codes int [B, h, w], trusted to be below num_codes -> pixels [B, h * stride, w * stride, 3], not cut to [-1, 1]."""
        return self.decode_entries(jnp.take(self.codebook[...], codes, axis=0, mode="clip").astype(self.policy.compute))


def to_pixels(images: jax.Array, *, accum: np.dtype) -> jax.Array:
    """Returns uint8 pictures as 2 (x / 255) - 1, in `accum`."""
    return 2.0 * (images.astype(accum) / 255.0) - 1.0


def to_uint8(pixels: jax.Array) -> jax.Array:
    """Returns pixels, cut to [-1, 1], as uint8: 255 (y + 1) / 2, truncated and not rounded (as the original writes pictures)."""
    return (255.0 * ((jnp.clip(pixels.astype(jnp.float32), -1.0, 1.0) + 1.0) / 2.0)).astype(jnp.uint8)


def create(config: VQGANConfig, key: jax.Array, *, precision: str = "f32") -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the structure and freshly drawn parameters; works under `jax.eval_shape` for the second."""
    graphdef, params = nnx.split(VQGAN(config, policy=policy(precision)))
    return graphdef, draw_params(params, key)
