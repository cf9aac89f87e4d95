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
from ofa_jax.convert.weights import from_state, shapes
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


def state(config: ModelConfig = MODEL, vocab: VocabConfig = VOCAB) -> dict[str, np.ndarray]:
    """Returns the model's state dict drawn from the field: fairseq's names, PyTorch's layout, float64, tied matrices once."""
    return {name: parameter(name, shape) for name, shape in shapes(config, vocab).items()}


def build(config: ModelConfig = MODEL, precision: str = "f32") -> tuple[nnx.GraphDef, nnx.State, dict]:
    """Returns graphdef, parameters and running statistics of the golden model."""
    graphdef, abstract = jax.eval_shape(lambda: ofa.create(config, VOCAB, jax.random.key(0), precision=precision))
    weights = from_state(state(config), config, VOCAB, where="golden field")
    params = jax.tree.map(lambda value, like: value.astype(like.dtype), weights.params, abstract)
    stats = jax.tree.map(lambda value, like: value.astype(like.dtype), weights.stats, ofa.init_stats(config, precision=precision))
    return graphdef, params, stats
