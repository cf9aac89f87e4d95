"""OFA's decoder: causal self attention, cross attention and feed-forward; text rows and image-code rows in one stack.

`code_mask` marks rows whose target is a grid of image codes. It switches four things at once: the position table (and its ids), the
position norm, the embedding norm and the relative table. `code_rows` is a static hint, so that a block without codes never pays:
"none" and "all" follow one path for every row whatever the mask says, "mixed" chooses per row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ofa_jax.config.schema import PAD_ID, ModelConfig
from ofa_jax.models.attention import Attention, KeysValues, Prompt, attention_probabilities, is_fused
from ofa_jax.models.encoder import Encoded
from ofa_jax.models.layers import (
    Adapter,
    FeedForward,
    LayerNorm,
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
    absolute_bias,
    code_position_ids,
    code_relative,
    image_buckets,
    token_buckets,
    token_relative,
)
from ofa_jax.models.precision import Policy

CodeRows = Literal["none", "all", "mixed"]


class Cache(NamedTuple):
    """Keys and values of all layers, and the position parts that do not change during generation.

    Each of Q encoded sequences has B / Q hypotheses, which lie next to each other and share its cross keys.
    """

    self_keys: jax.Array  # [N, B, H, T, K], filled up to the current place
    self_values: jax.Array
    cross_keys: jax.Array  # [N, Q, H, P+S, K]
    cross_values: jax.Array
    self_bias: PositionBias  # of all T places, first axis Q or 1
    cross_bias: PositionBias
    self_mask: jax.Array  # bool [B, T]: places that are written and not padding
    cross_mask: jax.Array  # bool [Q, P+S]


class Decoded(NamedTuple):
    """The decoder's output and, for comparisons, what happened inside."""

    hidden: jax.Array  # [Q, T, D], after the last norm
    layer_inputs: jax.Array  # [N + 1, Q, T, D]: what enters each layer, and the last norm
    cross_probabilities: jax.Array  # [N, Q, T, P+S], mean over the heads


class DecoderLayer(nnx.Module):
    """Three branches, each `x + drop_path(dropout(branch(norm(x))))`, with a second norm after each attention."""

    def __init__(self, config: ModelConfig, *, policy: Policy, stack: int):
        width, eps, std = config.width, config.layer_norm_eps, config.init_std

        def norm() -> LayerNorm:
            return LayerNorm(width, eps=eps, policy=policy, stack=stack)

        def attention() -> Attention:
            return Attention(
                width, config.num_heads, scale_factor=config.attn_scale_factor, rate=config.attention_dropout, std=std,
                kind=config.attention, keep=config.remat != "full", policy=policy, stack=stack, lora=config.lora,
            )  # fmt: skip

        self.self_norm, self.self_attention, self.self_out_norm = norm(), attention(), norm()
        self.cross_norm, self.cross_attention, self.cross_out_norm = norm(), attention(), norm()
        self.ffn_norm = norm()
        self.ffn = FeedForward(width, config.ffn_width, eps=eps, rate=config.activation_dropout, std=std, policy=policy, stack=stack)
        if config.adapter_width:
            self.adapter = Adapter(width, config.adapter_width, std=std, policy=policy, stack=stack)
        axes = ("buckets", "heads")
        self.token_relative = parameter((config.num_token_buckets, config.num_heads), axes, std=std, policy=policy, stack=stack)
        if config.writes_codes:
            self.image_relative = parameter((config.num_image_buckets, config.num_heads), axes, std=std, policy=policy, stack=stack)
        self.rate, self.adapted = config.dropout, config.adapter_width > 0

    def __call__(
        self,
        x: jax.Array,
        *,
        cross: tuple[jax.Array, jax.Array],
        self_bias: PositionBias,
        cross_bias: PositionBias,
        self_mask: jax.Array,
        cross_mask: jax.Array,
        past: tuple[jax.Array, jax.Array, jax.Array] | None = None,
        prompt: KeysValues | None = None,
        drop_rate: jax.Array | float = 0.0,
        drop: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns the new x and this layer's self-attention keys and values.

        Args:
          x: [Q, T, D], or [B, 1, D] with `past`: keys, values [B, H, T, K] and the place t (int scalar) that x is written to.
          self_mask: bool [Q, T], tokens that may be seen by those behind them, or [Q or 1, T, T], what each token sees.
          cross: keys and values of the encoder's states, [Q, H, P+S, K]; B is a multiple of Q (see `Cache`).
          prompt: this layer's prompt (`attention.Prompt`) or None; it is not part of the keys and values that come back.
        """
        keys = split_key(key, 9)
        path_keys = keys[6:] if drop else [None] * 3
        with jax.named_scope("self_attention"):
            h, (k, v) = self.self_branch(x, self_bias, self_mask, past=past, prompt=prompt, key=keys[0])
            x = x + drop_path(dropout(h, self.rate, keys[1]), drop_rate, path_keys[0])
        with jax.named_scope("cross_attention"):
            h = self.cross_norm(x).reshape(cross[0].shape[0], -1, x.shape[-1])  # hypotheses of one sequence are queries of the same keys
            h = self.cross_attention(h, cross, cross_bias, cross_mask, key=keys[2]).reshape(x.shape)
            x = x + drop_path(dropout(self.cross_out_norm(h), self.rate, keys[3]), drop_rate, path_keys[1])
        with jax.named_scope("ffn"):
            h = dropout(self.ffn(self.ffn_norm(x), key=keys[4]), self.rate, keys[5])
            return x + drop_path(self.adapter(h) if self.adapted else h, drop_rate, path_keys[2]), (k, v)

    def self_branch(
        self,
        x: jax.Array,
        bias: PositionBias,
        mask: jax.Array,
        *,
        past: tuple[jax.Array, jax.Array, jax.Array] | None = None,
        prompt: KeysValues | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns the self-attention branch before dropout, [Q, T, D], and its keys and values; arguments as in `__call__`."""
        h = self.self_norm(x)
        k, v = self.self_attention.keys_values(h)
        if past is not None:
            k = lax.dynamic_update_slice_in_dim(past[0], k, past[2], 2)
            v = lax.dynamic_update_slice_in_dim(past[1], v, past[2], 2)
        h = self.self_attention(h, (k, v), bias, mask, causal=past is None and mask.ndim == 2, prompt=prompt, key=key)
        return self.self_out_norm(h), (k, v)

    def cross_probabilities(
        self,
        x: jax.Array,
        *,
        cross: tuple[jax.Array, jax.Array],
        self_bias: PositionBias,
        cross_bias: PositionBias,
        self_mask: jax.Array,
        cross_mask: jax.Array,
        prompt: KeysValues | None,
    ) -> jax.Array:
        """Returns where each place looks, [Q, T, P+S], as mean over the heads; arguments as in `__call__`, nothing random."""
        x = x + self.self_branch(x, self_bias, self_mask, prompt=prompt)[0]
        q = self.cross_attention.queries(self.cross_norm(x))
        accum = self.cross_attention.accum
        return jnp.mean(attention_probabilities(q, cross[0], cross_bias, cross_mask, causal=False, accum=accum), axis=1)


class Decoder(nnx.Module):
    """The stack. Token embeddings are an argument: the matrix is shared with the encoder and the output."""

    def __init__(self, config: ModelConfig, *, policy: Policy):
        width, eps, std = config.width, config.layer_norm_eps, config.init_std
        self.text_norm = LayerNorm(width, eps=eps, policy=policy)
        if config.writes_codes:
            self.code_norm = LayerNorm(width, eps=eps, policy=policy)
        self.positions = PositionTable(config, config.num_target_positions, pictures=config.writes_codes, policy=policy)
        scale = config.attn_scale_factor
        self.self_position_bias = PositionProjection(width, config.num_heads, scale_factor=scale, std=std, policy=policy)
        self.cross_position_bias = PositionProjection(width, config.num_heads, scale_factor=scale, std=std, policy=policy)
        self.layers = DecoderLayer(config, policy=policy, stack=config.decoder_layers)
        self.norm = LayerNorm(width, eps=eps, policy=policy)
        if length := config.prompt_lens[1]:
            rate = config.prompt_dropout
            self.prompt = Prompt(length, config.decoder_layers, width, config.num_heads, rate=rate, std=std, policy=policy)
        self.config = config

    def __call__(
        self,
        embedded: jax.Array,
        ids: jax.Array,
        encoded: Encoded,
        *,
        code_mask: jax.Array | None,
        code_rows: CodeRows,
        key: jax.Array | None,
    ) -> jax.Array:
        """embedded [Q, T, D] of ids [Q, T] -> hidden states [Q, T, D] after the last norm."""
        return self._run(embedded, ids, encoded, code_mask=code_mask, code_rows=code_rows, key=key, keep_layers=False)[0]

    def trace(self, embedded: jax.Array, ids: jax.Array, encoded: Encoded, *, code_mask: jax.Array | None, code_rows: CodeRows) -> Decoded:
        """Returns the same hidden states with what entered each layer and where it looked; nothing random."""
        hidden, last, (entered, looked) = self._run(
            embedded, ids, encoded, code_mask=code_mask, code_rows=code_rows, key=None, keep_layers=True
        )
        return Decoded(hidden, jnp.concatenate([entered, last[None]]), looked)

    def _run(
        self,
        embedded: jax.Array,
        ids: jax.Array,
        encoded: Encoded,
        *,
        code_mask: jax.Array | None,
        code_rows: CodeRows,
        key: jax.Array | None,
        keep_layers: bool,
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Returns (hidden states, what the last norm read, (inputs, cross probabilities) of every layer or None)."""
        self._check_rows(code_rows)
        config, length = self.config, ids.shape[1]
        input_key, layers_key = split_key(key, 2)
        prompt_key = None if key is None else fold_key(key, 2)
        x = dropout(self._norm_inputs(embedded, code_mask, code_rows), config.dropout, input_key)
        dense = not is_fused(config.attention, layers_key)
        self_bias, cross_bias = self._biases(encoded.positions, length, code_mask, code_rows, dense=dense)
        drop = config.decoder_drop_path_rate > 0
        self_mask = ids != PAD_ID

        def step(layer: DecoderLayer, x: jax.Array, xs: tuple[jax.Array, jax.Array, KeysValues | None]):
            index, rate, prompt = xs
            with jax.named_scope("positions"):
                relative = choose(
                    code_mask,
                    code_rows,
                    lambda: token_relative(layer.token_relative[...], length, config)[None],
                    lambda: code_relative(layer.image_relative[...], length, config)[None],
                )
            with jax.named_scope("cross_attention"):
                cross = layer.cross_attention.keys_values(encoded.states)
            reads: dict[str, Any] = {
                "cross": cross,
                "self_bias": self_bias._replace(relative=relative),
                "cross_bias": cross_bias,
                "self_mask": self_mask,
                "cross_mask": encoded.mask,
                "prompt": prompt,
            }
            kept = (x, layer.cross_probabilities(x, **reads)) if keep_layers else None
            layer_key = None if layers_key is None else fold_key(layers_key, index)
            return layer(x, **reads, drop_rate=rate, drop=drop, key=layer_key)[0], kept

        xs = (*self._layer_inputs(), self._prompts(ids.shape[0], prompt_key))
        x, kept = run_layers(self.layers, step, x, xs, num=config.decoder_layers, mode=config.layers, remat=config.remat)
        return self.norm(x), x, kept

    def tree(self, embedded: jax.Array, encoded: Encoded, *, places: jax.Array, sees: jax.Array, length: int) -> jax.Array:
        """Returns hidden states [Q, L, D] of text tokens that form a tree: many continuations of a sequence in one pass.

        Args:
          embedded: [Q, L, D].
          places: int32 [Q or 1, L], the place of each token in its own sequence, 0 for BOS, below `length` (static).
          sees: bool [Q or 1, L, L], True where token i sees token j: itself and what its sequence holds before it.
        """
        config = self.config
        self_bias, cross_bias = self._biases(encoded.positions, length, None, "none")
        absolute, cross_bias = self_bias.at(places, places), cross_bias.at(places)

        def step(layer: DecoderLayer, x: jax.Array, prompt: KeysValues | None):
            relative = token_relative(layer.token_relative[...], length, config)[None]
            x, _ = layer(
                x,
                cross=layer.cross_attention.keys_values(encoded.states),
                self_bias=absolute._replace(relative=self_bias._replace(absolute=relative).at(places, places).absolute),
                cross_bias=cross_bias,
                self_mask=sees,
                cross_mask=encoded.mask,
                prompt=prompt,
            )
            return x, None

        x = self._norm_inputs(embedded, None, "none")
        prompts = self._prompts(x.shape[0], None)
        x, _ = run_layers(self.layers, step, x, prompts, num=config.decoder_layers, mode=config.layers, remat="none")
        return self.norm(x)

    def start(self, encoded: Encoded, length: int, *, code_mask: jax.Array | None, code_rows: CodeRows, beams: int = 1) -> Cache:
        """Returns an empty cache for `length` decoder inputs of `beams` hypotheses a sequence."""
        self._check_rows(code_rows)
        config = self.config

        def step(layer: DecoderLayer, carry: None, xs: None):
            return carry, layer.cross_attention.keys_values(encoded.states)

        _, (cross_keys, cross_values) = run_layers(
            self.layers, step, None, None, num=config.decoder_layers, mode=config.layers, remat="none"
        )
        num = encoded.states.shape[0] * beams
        empty = jnp.zeros((config.decoder_layers, num, config.num_heads, length, config.head_width), cross_keys.dtype)
        self_bias, cross_bias = self._biases(encoded.positions, length, code_mask, code_rows)
        self_mask = jnp.zeros((num, length), bool)
        return Cache(empty, empty, cross_keys, cross_values, self_bias, cross_bias, self_mask, encoded.mask)

    def step(
        self,
        embedded: jax.Array,
        ids: jax.Array,
        place: jax.Array,
        cache: Cache,
        *,
        code_mask: jax.Array | None,
        code_rows: CodeRows,
    ) -> tuple[jax.Array, Cache]:
        """Runs the stack on the inputs of one place: embedded [B, D] of ids [B] at `place` -> hidden [B, D] and the new cache."""
        config, length, beams = self.config, cache.self_keys.shape[3], ids.shape[0] // cache.cross_mask.shape[0]
        code_mask = None if code_mask is None else jnp.repeat(jnp.asarray(code_mask), beams)
        x = self._norm_inputs(embedded[:, None], code_mask, code_rows)
        self_mask = lax.dynamic_update_slice_in_dim(cache.self_mask, (ids != PAD_ID)[:, None], place, 1)
        self_bias, cross_bias = _row(cache.self_bias, place), _row(cache.cross_bias, place)
        self_bias = jax.tree.map(lambda x: x if x.shape[0] == 1 else jnp.repeat(x, beams, 0), self_bias)

        def relative_row(table: jax.Array, buckets: np.ndarray) -> jax.Array:
            row = lax.dynamic_index_in_dim(jnp.asarray(buckets), place, 0, keepdims=False)
            return table[row].T[None, :, None]  # [1, H, 1, T]

        def step(layer: DecoderLayer, x: jax.Array, xs: tuple[Any, ...]):
            past_keys, past_values, cross_keys, cross_values, prompt = xs
            relative = choose(
                code_mask,
                code_rows,
                lambda: relative_row(layer.token_relative[...], text_place_buckets(length, config)),
                lambda: relative_row(layer.image_relative[...], code_place_buckets(length, config)),
            )
            return layer(
                x,
                cross=(cross_keys, cross_values),
                self_bias=self_bias._replace(relative=relative),
                cross_bias=cross_bias,
                self_mask=self_mask,
                cross_mask=cache.cross_mask,
                past=(past_keys, past_values, place),
                prompt=prompt,
            )

        xs = (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values, self._prompts(ids.shape[0], None))
        x, (keys, values) = run_layers(self.layers, step, x, xs, num=config.decoder_layers, mode=config.layers, remat="none")
        return self.norm(x)[:, 0], cache._replace(self_keys=keys, self_values=values, self_mask=self_mask)

    def _check_rows(self, code_rows: CodeRows) -> None:
        """Raises ValueError where targets may be image codes and the model is without them."""
        if code_rows != "none" and not self.config.writes_codes:
            raise ValueError(f"code_rows: found {code_rows!r} for a model with model.without=codes, expected 'none'")

    def _norm_inputs(self, embedded: jax.Array, code_mask: jax.Array | None, code_rows: CodeRows) -> jax.Array:
        return choose(code_mask, code_rows, lambda: self.text_norm(embedded), lambda: self.code_norm(embedded))

    @jax.named_scope("positions")
    def _biases(
        self, encoder_positions: jax.Array, length: int, code_mask: jax.Array | None, code_rows: CodeRows, *, dense: bool = True
    ) -> tuple[PositionBias, PositionBias]:
        """Returns the absolute parts of self and cross attention for `length` decoder places; dense: as in `PositionProjection`."""
        positions = choose(
            code_mask,
            code_rows,
            lambda: self.positions.text_positions(length)[None],
            lambda: self.positions.code_positions(length)[None],
        )
        own = self.self_position_bias(positions, positions, dense=dense)
        return own, self.cross_position_bias(positions, encoder_positions, dense=dense)

    def _prompts(self, num: int, key: jax.Array | None) -> KeysValues | None:
        return self.prompt(num, key=key) if self.config.prompt_lens[1] else None

    def _layer_inputs(self) -> tuple[jax.Array, jax.Array]:
        num = self.config.decoder_layers
        return jnp.arange(num), jnp.asarray(drop_path_rates(self.config.decoder_drop_path_rate, num))


def choose(code_mask: jax.Array | None, code_rows: CodeRows, text: Callable[[], jax.Array], code: Callable[[], jax.Array]) -> jax.Array:
    """Returns text(), code() or, for "mixed", a choice per row; the branches have first axis Q or 1 and equal shapes otherwise."""
    if code_rows == "none":
        return text()
    if code_rows == "all":
        return code()
    if code_rows != "mixed" or code_mask is None:
        raise ValueError(f"code_rows: found {code_rows!r}, expected 'none', 'all', or 'mixed' with a code_mask")
    on_text, on_code = text(), code()
    return jnp.where(code_mask.reshape((-1,) + (1,) * (on_text.ndim - 1)), on_code, on_text)


def text_place_buckets(length: int, config: ModelConfig) -> np.ndarray:
    """Returns the 1-D buckets int32 [length, length] of all pairs of text places."""
    place = np.arange(length)
    return token_buckets(place[:, None] - place[None], bucket_size=config.token_bucket_size, max_positions=config.max_positions)


def code_place_buckets(length: int, config: ModelConfig) -> np.ndarray:
    """Returns the 2-D buckets int32 [length, length] of all pairs of places of a code sequence."""
    ids = code_position_ids(length, config)
    return np.asarray(image_buckets(ids[:, None], ids[None], side=config.image_bucket_size))


def _row(bias: PositionBias, place: jax.Array) -> PositionBias:
    """Returns the bias of one query place."""
    assert bias.absolute is not None  # `start` made it
    return absolute_bias(lax.dynamic_slice_in_dim(bias.query, place, 1, 2), bias.key, bias.absolute.dtype)
