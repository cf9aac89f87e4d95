"""The small model of the golden numbers: parameters, statistics and inputs drawn from a deterministic field over fairseq's names.

Golden numbers were measured with the official PyTorch code (OFA-Sys/OFA, commit a36b91ce86ff) on parameters filled by `field`.
"""

from __future__ import annotations

import re
import zlib

import jax
import numpy as np
from flax import nnx

from ofa_jax.config.schema import ModelConfig, VocabConfig
from ofa_jax.models import ofa

# Head width, eps and every other default are OFA's; dropout is off because parity is measured in evaluation mode.
MODEL = ModelConfig(width=32, ffn_width=64, num_heads=4, encoder_layers=2, decoder_layers=2, dropout=0.0)
VOCAB = VocabConfig(num_text=300, num_codes=16, num_bins=4, pad_multiple=128)  # 320 ids in 384 rows

SOURCE_IDS = np.array(
    [[0, 104, 53, 246, 87, 24, 64, 8, 2], [0, 211, 308, 43, 252, 2, 1, 1, 1], [0, 157, 237, 126, 230, 128, 287, 164, 2]], np.int32
)
DECODER_IDS = np.array(
    [
        [0, 153, 38, 55, 294, 86, 147, 280, 313, 109, 206, 301],
        [0, 253, 211, 208, 297, 295, 81, 16, 276, 126, 65, 140],
        [0, 302, 50, 170, 124, 284, 244, 211, 309, 1, 1, 1],
    ],
    np.int32,
)
IMAGE_MASK = np.array([True, True, False])


def field(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns pseudo-random float64 numbers in [-1, 1), a pure function of the name and the element's index in C order."""
    u = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(zlib.crc32(name.encode()))
    for _ in range(2):
        u ^= u >> np.uint32(16)
        u *= np.uint32(0x45D9F3B)
    u ^= u >> np.uint32(16)
    return (u / 2.0**31 - 1.0).reshape(shape)


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the value of one tensor of the state dict, in PyTorch's layout."""
    r = field(name, shape)
    if name.endswith("running_mean"):
        return 0.1 * r
    if name.endswith("running_var"):
        return 1 + 0.5 * r
    if len(shape) == 1:
        return 0.1 * r if name.endswith("bias") else 1 + 0.1 * r
    if "rel_pos_table" in name:
        return 0.5 * r
    if re.search(r"(embed_tokens|embed_positions|embed_image_positions|type_embedding)\.weight$", name):
        return r
    return r * np.sqrt(3 / np.prod(shape[1:]))


def pixels() -> np.ndarray:
    """Returns the three input pictures, normalised, as [3, 64, 96, 3]."""
    return field("img", (3, 3, 64, 96)).transpose(0, 2, 3, 1)


# Our path -> fairseq's name, without the leaf (kernel, scale, bias, table); "{}" is the layer's number.
_STACK = {
    "self_norm": "self_attn_layer_norm",
    "self_attention": "self_attn",
    "cross_norm": "encoder_attn_layer_norm",
    "cross_attention": "encoder_attn",
    "cross_out_norm": "cross_attn_ln",
    "ffn_norm": "final_layer_norm",
    "ffn.expand": "fc1",
    "ffn.norm": "ffn_layernorm",
    "ffn.contract": "fc2",
}
_PROJECTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_FIXED = {
    "embedding": "encoder.embed_tokens",
    "encoder.types": "encoder.type_embedding",
    "encoder.text_norm": "encoder.layernorm_embedding",
    "encoder.image_norm": "encoder.patch_layernorm_embedding",
    "encoder.image_proj": "encoder.image_proj",
    "encoder.position_bias.query": "encoder.pos_q_linear",
    "encoder.position_bias.key": "encoder.pos_k_linear",
    "encoder.norm": "encoder.layer_norm",
    "decoder.text_norm": "decoder.layernorm_embedding",
    "decoder.code_norm": "decoder.code_layernorm_embedding",
    "decoder.self_position_bias.query": "decoder.self_pos_q_linear",
    "decoder.self_position_bias.key": "decoder.self_pos_k_linear",
    "decoder.cross_position_bias.query": "decoder.cross_pos_q_linear",
    "decoder.cross_position_bias.key": "decoder.cross_pos_k_linear",
    "decoder.norm": "decoder.layer_norm",
}
_POSITIONS = {"text": "embed_positions", "image": "embed_image_positions", "text_norm": "pos_ln", "image_norm": "image_pos_ln"}
_RESNET_LEAF = {"kernel1": "conv1.weight", "kernel2": "conv2.weight", "kernel3": "conv3.weight", "shortcut": "downsample.0.weight"}
_RESNET_NORM = {"norm1": "bn1", "norm2": "bn2", "norm3": "bn3", "shortcut_norm": "downsample.1", "shortcut": "downsample.1"}
_LEAF = {"kernel": "weight", "scale": "weight", "table": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def fairseq_name(path: tuple[str, ...]) -> str:
    """Returns fairseq's name of the tensor at our path; a stacked tensor has "{}" for its layer."""
    if path[:2] == ("resnet", "stem"):
        return "encoder.embed_images.conv1.weight"
    if path[:2] == ("resnet", "stem_norm"):
        return f"encoder.embed_images.bn1.{_LEAF[path[2]]}"
    if path[0] == "resnet":
        stage, part = path[1].split("_")
        block = f"encoder.embed_images.layer{stage[-1]}.{'0' if part == 'first' else '{}'}"
        return f"{block}.{_RESNET_LEAF[path[2]]}" if len(path) == 3 else f"{block}.{_RESNET_NORM[path[2]]}.{_LEAF[path[3]]}"
    if path[1] == "positions":
        return f"{path[0]}.{_POSITIONS[path[2]]}.{_LEAF[path[3]]}"
    if path[1] == "layers":
        if path[2] in ("token_relative", "image_relative"):
            return f"{path[0]}.{path[2].split('_')[0]}_rel_pos_table_list.{{}}.weight"
        module, leaf = ".".join(path[2:-1]), path[-1]
        first, _, projection = module.partition(".")
        if projection in _PROJECTION:
            module = f"{_STACK[first]}.{_PROJECTION[projection]}"
        elif module == "self_out_norm":
            module = "attn_ln" if path[0] == "encoder" else "self_attn_ln"
        else:
            module = _STACK[module]
        return f"{path[0]}.layers.{{}}.{module}." + ("c_attn" if leaf == "head_scale" else _LEAF[leaf])
    return f"{_FIXED['.'.join(path[:-1])]}.{_LEAF[path[-1]]}"


def _fill(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Returns our tensor at `path` from the field: layers stacked, kernels (in, out), convolutions HWIO."""
    name = fairseq_name(path)
    if "{}" in name:
        start = 1 if "embed_images" in name else 0  # the first block of a stage is stored by itself
        return np.stack([_one(name.format(start + i), shape[1:]) for i in range(shape[0])])
    if path[0] == "embedding":
        table = np.zeros(shape)
        table[: VOCAB.size] = parameter(name, (VOCAB.size, shape[1]))
        return table
    return _one(name, shape)


def _one(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 4:
        return parameter(name, (shape[3], shape[2], shape[0], shape[1])).transpose(2, 3, 1, 0)
    if len(shape) == 2 and not re.search(r"embed|rel_pos", name):
        return parameter(name, shape[::-1]).T
    return parameter(name, shape)


def _path(keys: tuple) -> tuple[str, ...]:
    return tuple(k.key for k in keys if isinstance(k, jax.tree_util.DictKey))


def _stat_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the path of the norm whose running statistics sit at `path` of the statistics' tree."""
    if path[0] == "stem":
        return ("resnet", "stem_norm", path[1])
    return ("resnet", f"{path[0]}_{path[1]}", *path[2:])


def build(config: ModelConfig = MODEL, precision: str = "f32") -> tuple[nnx.GraphDef, nnx.State, dict]:
    """Returns graphdef, parameters and running statistics of the golden model."""
    shapes = jax.eval_shape(lambda key: ofa.create(config, VOCAB, key, precision=precision), jax.random.key(0))
    graphdef, params = shapes
    params = jax.tree.map_with_path(lambda keys, x: _fill(_path(keys), x.shape).astype(x.dtype), params)
    stats = ofa.init_stats(config, precision=precision)
    stats = jax.tree.map_with_path(lambda keys, x: _fill(_stat_path(_path(keys)), x.shape).astype(x.dtype), stats)
    return graphdef, params, stats
