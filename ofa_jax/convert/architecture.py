"""The model that a state dict belongs to, read from the names and shapes of its tensors.

Shapes say nearly everything: widths, layers, heads (the head scales), ResNet stages, table sizes, the code grid (a buffer). What they
do not say is OFA's constant: strides, norm epsilon, dropout rates (those of the size that it is).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ofa_jax.config.errors import ConvertError
from ofa_jax.config.schema import OPTIONAL_PARTS, ModelConfig, ResNetConfig, VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.convert.names import EMBEDDING, TIED, absent_parts
from ofa_jax.convert.weights import NUM_FILLERS

_STRUCTURE = ("width", "ffn_width", "num_heads", "encoder_layers", "decoder_layers")


def model_of(state: Mapping[str, Any], *, where: str) -> ModelConfig:
    """Returns the config of the model whose weights `state` holds, under fairseq's names; only shapes are read. A part of which it has
    nothing at all, the pictures' or the codes', is one that the model is without.

    `where` begins an error's sentence. Raises ConvertError when a tensor that is needed for it is missing or has an odd shape.
    """
    shape = _Shapes(state, where)
    width = shape("encoder.layernorm_embedding.weight")[0]
    without = absent_parts(state)
    side = _side(shape, without, where)
    buckets = shape("encoder.token_rel_pos_table_list.0.weight")[0]
    model = ModelConfig(
        width=width,
        ffn_width=shape("encoder.layers.0.fc1.weight")[0],
        num_heads=shape("encoder.layers.0.self_attn.c_attn")[0],
        encoder_layers=_count(state, r"encoder\.layers\.(\d+)\."),
        decoder_layers=_count(state, r"decoder\.layers\.(\d+)\."),
        resnet=ResNetConfig() if "pictures" in without else _resnet_of(state, shape),
        token_bucket_size=(buckets + 1) // 2,
        image_bucket_size=side,
        num_source_positions=shape("encoder.embed_positions.weight")[0],
        num_target_positions=shape("decoder.embed_positions.weight")[0],
        adapter_width=shape(adapter)[0] if (adapter := "encoder.layers.0.adapter.down_proj.weight") in state else 0,
        prompt_lens=(_prompt_len(state, shape, "encoder"), _prompt_len(state, shape, "decoder")),
        without=without,
    )
    model = dataclasses.replace(model, code_filler_id=min(model.code_filler_id, side * side))
    if "encoder.token_rp_bucket" in state:
        model = dataclasses.replace(model, max_positions=shape("encoder.token_rp_bucket")[0])
    if "decoder.image_position_idx" in state:
        model = dataclasses.replace(model, code_image_px=_code_grid(shape("decoder.image_position_idx")[0], where) * model.code_stride)
    size = size_of(model)
    if size is None:
        return model
    known = SIZES[size]
    if not model.reads_pictures:
        model = dataclasses.replace(model, resnet=known.resnet)
    rates = ("dropout", "attention_dropout", "activation_dropout", "encoder_drop_path_rate", "decoder_drop_path_rate")
    return dataclasses.replace(model, **{name: getattr(known, name) for name in rates})


def size_of(model: ModelConfig) -> str | None:
    """Returns the name of the size that has this model's widths, layers, heads and, where it reads pictures, ResNet stages, or None."""
    for name, known in SIZES.items():
        same = all(getattr(known, field) == getattr(model, field) for field in _STRUCTURE)
        front = known.resnet.blocks == model.resnet.blocks and known.resnet.base_width == model.resnet.base_width
        if same and (front or not model.reads_pictures):
            return name
    return None


def vocab_of(state: Mapping[str, Any], *, where: str, num_codes: int = 8_192, num_bins: int = 1_000) -> VocabConfig:
    """Returns the vocabulary of the state's matrix: what is left beside the codes and bins is text, fairseq's four ids and MASK included.

    Raises ConvertError when fewer than five text ids would be left.
    """
    rows = _Shapes(state, where)(next((name for name in TIED if name in state), EMBEDDING))[0]
    num_text = rows - num_codes - num_bins
    if num_text < 5:
        raise ConvertError(
            f"{where}: found a vocabulary of {rows} rows, expected more than {num_codes} image codes and {num_bins} location bins; "
            "give their numbers with --config.vocab.num_codes and --config.vocab.num_bins"
        )
    return VocabConfig(num_text=num_text, num_codes=num_codes, num_bins=num_bins)


class _Shapes:
    """The shape of a tensor by name, or an error that says which is missing."""

    def __init__(self, state: Mapping[str, Any], where: str):
        self._state, self._where = state, where

    def __call__(self, name: str) -> tuple[int, ...]:
        if name not in self._state:
            some = ", ".join(list(self._state)[:3]) or "nothing"
            raise ConvertError(f"{self._where}: found no {name} among {len(self._state)} tensors ({some} ...), expected the weights of OFA")
        shape = tuple(self._state[name].shape)
        if not shape:
            raise ConvertError(f"{self._where}: {name}: found a single number, expected at least one dimension")
        return shape


def _count(names: Iterable[str], pattern: str) -> int:
    return max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1) + 1


def _prompt_len(state: Mapping[str, Any], shape: _Shapes, stack: str) -> int:
    name = f"{stack}.{stack}_prompt_encoder.embedding.weight"
    return shape(name)[0] if name in state else 0


def _side(shape: _Shapes, without: tuple[str, ...], where: str) -> int:
    """Cells of a side of the picture tables, of either stack; OFA's own where the model has none."""
    if set(OPTIONAL_PARTS) <= set(without):
        return ModelConfig.image_bucket_size
    name = f"{'decoder' if 'pictures' in without else 'encoder'}.embed_image_positions.weight"
    sides = shape(name)[0] - 1
    side = math.isqrt(sides)
    if side * side != sides:
        raise ConvertError(f"{where}: {name}: found {sides + 1} rows, expected a square number and one")
    return side


def _resnet_of(state: Mapping[str, Any], shape: _Shapes) -> ResNetConfig:
    stem = shape("encoder.embed_images.conv1.weight")
    stages = _count(state, r"encoder\.embed_images\.layer(\d+)\.") - 1
    blocks = tuple(_count(state, rf"encoder\.embed_images\.layer{stage}\.(\d+)\.") for stage in range(1, stages + 1))
    inner = shape("encoder.embed_images.layer1.0.conv2.weight")
    out = shape("encoder.embed_images.layer1.0.conv3.weight")
    return ResNetConfig(
        blocks=blocks, base_width=stem[0], stem_kernel=stem[-1], expansion=out[0] // inner[0], strides=(1, *(2,) * (stages - 1))
    )


def _code_grid(length: int, where: str) -> int:
    for fillers in NUM_FILLERS.values():
        side = math.isqrt(max(length - 1 - fillers, 0))
        if side and 1 + side * side + fillers == length:
            return side
    raise ConvertError(f"{where}: decoder.image_position_idx: found {length} entries, expected 1, a square grid of codes and 769 fillers")
