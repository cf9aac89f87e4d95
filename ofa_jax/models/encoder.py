"""OFA's encoder: picture features and text in one sequence, pictures first, with pre-norm layers and the position bias of the stack."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ofa_jax.config.schema import ModelConfig
from ofa_jax.models.attention import Attention, KeysValues, Prompt, is_fused
from ofa_jax.models.layers import (
    Adapter,
    Embedding,
    FeedForward,
    LayerNorm,
    Linear,
    drop_path,
    drop_path_rates,
    dropout,
    fold_key,
    parameter,
    run_layers,
    split_key,
)
from ofa_jax.models.position_bias import (
    PositionBias,
    PositionProjection,
    PositionTable,
    grid_relative,
    ids_relative,
    image_position_ids,
    join_blocks,
    token_relative,
)
from ofa_jax.models.precision import Policy
from ofa_jax.models.strips import SampledRelative, cut, find_patches, grid_strips


class Encoded(NamedTuple):
    """What the decoder reads. Pictures come first: entry P is the first text token."""

    states: jax.Array  # [Q, P+S, D]
    mask: jax.Array  # bool [Q, P+S], True = keep
    positions: jax.Array  # [Q or 1, P+S, D], normalised; first axis 1 when all sequences share them (no sampled patches)
    layer_inputs: jax.Array | None = None  # [N + 1, Q, P+S, D]: what enters each layer, and the last norm; only if asked for


class EncoderLayer(nnx.Module):
    """Self attention and feed-forward, each `x + drop_path(dropout(branch(norm(x))))`, with a second norm after the attention."""

    def __init__(self, config: ModelConfig, *, policy: Policy, stack: int):
        width, eps, std = config.width, config.layer_norm_eps, config.init_std
        self.self_norm = LayerNorm(width, eps=eps, policy=policy, stack=stack)
        self.self_attention = Attention(
            width, config.num_heads, scale_factor=config.attn_scale_factor, rate=config.attention_dropout, std=std,
            kind=config.attention, keep=config.remat != "full", policy=policy, stack=stack, lora=config.lora,
        )  # fmt: skip
        self.self_out_norm = LayerNorm(width, eps=eps, policy=policy, stack=stack)
        self.ffn_norm = LayerNorm(width, eps=eps, policy=policy, stack=stack)
        self.ffn = FeedForward(width, config.ffn_width, eps=eps, rate=config.activation_dropout, std=std, policy=policy, stack=stack)
        if config.adapter_width:
            self.adapter = Adapter(width, config.adapter_width, std=std, policy=policy, stack=stack)
        axes = ("buckets", "heads")
        self.token_relative = parameter((config.num_token_buckets, config.num_heads), axes, std=std, policy=policy, stack=stack)
        if config.reads_pictures:
            self.image_relative = parameter((config.num_image_buckets, config.num_heads), axes, std=std, policy=policy, stack=stack)
        self.rate, self.adapted = config.dropout, config.adapter_width > 0

    def __call__(
        self,
        x: jax.Array,
        bias: PositionBias,
        mask: jax.Array,
        *,
        prompt: KeysValues | None,
        drop_rate: jax.Array | float,
        drop: bool,
        key: jax.Array | None,
    ) -> jax.Array:
        """x [Q, P+S, D], mask bool [Q, P+S] -> [Q, P+S, D]; `drop` says statically whether whole branches are dropped.

        `prompt`: this layer's prompt (`attention.Prompt`) or None.
        """
        keys = split_key(key, 6)
        path_keys = keys[4:] if drop else [None, None]
        with jax.named_scope("attention"):
            h = self.self_norm(x)
            h = self.self_attention(h, self.self_attention.keys_values(h), bias, mask, prompt=prompt, key=keys[0])
            x = x + drop_path(dropout(self.self_out_norm(h), self.rate, keys[1]), drop_rate, path_keys[0])
        with jax.named_scope("ffn"):
            h = dropout(self.ffn(self.ffn_norm(x), key=keys[2]), self.rate, keys[3])
            return x + drop_path(self.adapter(h) if self.adapted else h, drop_rate, path_keys[1])


class Encoder(nnx.Module):
    """Joins both input streams and runs the layers. Token embeddings are an argument: the matrix is shared with the decoder."""

    def __init__(self, config: ModelConfig, *, policy: Policy):
        width, eps, std = config.width, config.layer_norm_eps, config.init_std
        self.types = Embedding(2, width, (None, "width"), std=std, policy=policy)  # 0 text, 1 picture
        self.text_norm = LayerNorm(width, eps=eps, policy=policy)
        if config.reads_pictures:
            self.image_norm = LayerNorm(width, eps=eps, policy=policy)
            self.image_proj = Linear(config.resnet.out_channels, width, ("channels_in", "width"), std=std, policy=policy)
        self.positions = PositionTable(config, config.num_source_positions, pictures=config.reads_pictures, policy=policy)
        self.position_bias = PositionProjection(width, config.num_heads, scale_factor=config.attn_scale_factor, std=std, policy=policy)
        self.layers = EncoderLayer(config, policy=policy, stack=config.encoder_layers)
        self.norm = LayerNorm(width, eps=eps, policy=policy)
        if length := config.prompt_lens[0]:
            rate = config.prompt_dropout
            self.prompt = Prompt(length, config.encoder_layers, width, config.num_heads, rate=rate, std=std, policy=policy)
        self.config, self.policy = config, policy

    def __call__(
        self,
        embedded: jax.Array,
        text_mask: jax.Array,
        *,
        features: jax.Array | None,
        grid: tuple[int, int] | None,
        patch_ids: jax.Array | None,
        image_mask: jax.Array | None,
        key: jax.Array | None,
        keep_layers: bool = False,
    ) -> Encoded:
        """Returns the encoded sequences, with what entered each layer if `keep_layers`.

        Args:
          embedded: token embeddings [Q, S, D]. text_mask: bool [Q, S], True = a real token.
          features: [R, P, C] of R pictures with Q = R * G, or None: sequence q sees picture q // G.
          grid: rows and columns of the P patches. patch_ids: int [Q, P'], the patches each sequence keeps; None keeps all.
          image_mask: bool [R] or [Q]; False hides the whole picture of a row. key: dropout and drop path.

        Raises ValueError for features where the model is without pictures.
        """
        config = self.config
        if features is not None and not config.reads_pictures:
            raise ValueError("features: found pictures for a model with model.without=pictures, expected none")
        text_key, image_key, layers_key = split_key(key, 3)
        prompt_key = None if key is None else fold_key(key, 3)
        num, length = text_mask.shape
        text = self.text_norm(embedded + self.types.table[0].astype(embedded.dtype))
        x, mask = dropout(text, config.dropout, text_key), text_mask
        positions = self.positions.text_positions(length)[None]
        ids = None
        if features is not None:
            assert grid is not None  # `OFA.encode` fills it in
            image, ids, image_positions = self._image_stream(features, grid, patch_ids, num)
            patches = image.shape[1]
            x = jnp.concatenate([dropout(image, config.dropout, image_key), x], 1)
            visible = jnp.ones((num,), bool) if image_mask is None else _repeat_rows(image_mask, num)
            mask = jnp.concatenate([jnp.broadcast_to(visible[:, None], (num, patches)), text_mask], 1)
            shared_text = jnp.broadcast_to(positions, (image_positions.shape[0], *positions.shape[1:]))
            positions = jnp.concatenate([image_positions, shared_text], 1)
        x = x * mask[..., None].astype(x.dtype)
        fused = is_fused(config.attention, layers_key)
        with jax.named_scope("positions"):
            bias = self.position_bias(positions, positions, dense=not fused)
        drop = config.encoder_drop_path_rate > 0
        found = None
        if patch_ids is not None and fused:
            assert grid is not None
            found = find_patches(patch_ids, cut(*grid))

        @jax.named_scope("positions")
        def relative_of(layer: EncoderLayer) -> jax.Array | SampledRelative:
            side, image = config.image_bucket_size, None
            if found is not None and grid is not None:
                text = token_relative(layer.token_relative[...], length, config)[None]
                return SampledRelative(grid_strips(layer.image_relative[...], cut(*grid), side=side), found, text, cut(*grid))
            if ids is not None:
                image = ids_relative(layer.image_relative[...], ids, ids, side=side)
            elif features is not None:
                assert grid is not None
                image = grid_relative(layer.image_relative[...], grid[0], grid[1], side=side)[None]
            relative = join_blocks(image, token_relative(layer.token_relative[...], length, config)[None])
            return relative if ids is None else relative.astype(x.dtype)  # one per sequence: the largest array of a layer

        def step(layer: EncoderLayer, x: jax.Array, xs: tuple[jax.Array, jax.Array, KeysValues | None]):
            index, rate, prompt = xs
            relative = relative_of(layer)
            layer_key = None if layers_key is None else fold_key(layers_key, index)
            entered = x if keep_layers else None
            return layer(x, bias._replace(relative=relative), mask, prompt=prompt, drop_rate=rate, drop=drop, key=layer_key), entered

        num_layers = config.encoder_layers
        rates = jnp.asarray(drop_path_rates(config.encoder_drop_path_rate, num_layers))
        prompts = self.prompt(num, key=prompt_key) if config.prompt_lens[0] else None
        xs = (jnp.arange(num_layers), rates, prompts)
        x, entered = run_layers(self.layers, step, x, xs, num=num_layers, mode=config.layers, remat=config.remat)
        return Encoded(self.norm(x), mask, positions, jnp.concatenate([entered, x[None]]) if keep_layers else None)

    @jax.named_scope("inputs")
    def _image_stream(
        self, features: jax.Array, grid: tuple[int, int], patch_ids: jax.Array | None, num: int
    ) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """Returns image embeddings [Q, P', D], position ids [Q, P'] (None: the full grid) and normalised positions [Q or 1, P', D]."""
        rows, patches = features.shape[:2]
        if grid[0] * grid[1] != patches:
            raise ValueError(f"image grid: found {grid[0]}x{grid[1]} for {patches} patches, expected their product")
        if num % rows:
            raise ValueError(f"source_ids: found {num} sequences for {rows} images, expected a multiple")
        # Projection and norm see each picture once; its sequences share the result.
        image = self.image_norm(self.image_proj(features) + self.types.table[1].astype(self.policy.compute))
        positions = self.positions.grid_positions(*grid)
        if patch_ids is None:
            return _repeat_rows(image, num), None, positions[None]
        if self.config.interpolate_position:
            raise ValueError("model.interpolate_position: found True with sampled patches, expected one of the two")
        owner = (jnp.arange(num) // (num // rows))[:, None]
        sampled = jnp.take(image.reshape(rows * patches, -1), owner * patches + patch_ids, axis=0, mode="clip")
        ids = jnp.asarray(image_position_ids(*grid, side=self.config.image_bucket_size))[patch_ids]
        return sampled, ids, jnp.take(positions, patch_ids, axis=0, mode="clip")


def _repeat_rows(x: jax.Array, num: int) -> jax.Array:
    """x [R, ...] -> [num, ...] with each row repeated num / R times in place."""
    rows = x.shape[0]
    if rows == num:
        return x
    return jnp.broadcast_to(x[:, None], (rows, num // rows, *x.shape[1:])).reshape(num, *x.shape[1:])
