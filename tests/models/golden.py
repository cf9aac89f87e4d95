"""The small model of the golden numbers: parameters, statistics and inputs drawn from a deterministic field over fairseq's names.

Golden numbers were measured with the official PyTorch code (OFA-Sys/OFA, commit a36b91ce86ff) on parameters filled by `field`.
"""

from __future__ import annotations

import re
import zlib

import jax
import numpy as np
from flax import nnx

from ofa_jax.config.schema import LossConfig, ModelConfig, VocabConfig, VQGANConfig
from ofa_jax.convert import taming
from ofa_jax.convert.weights import from_state, shapes
from ofa_jax.decode.constraints import IdRange
from ofa_jax.decode.rules import DecodeConfig
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


# Targets of the losses: the decoder's inputs shifted by one, EOS behind them.
TARGET_IDS = np.where(np.arange(12) == [[11], [11], [8]], 2, np.roll(DECODER_IDS, -1, 1))
TARGET_IDS[2, 9:] = 1
CONFIDENCE = np.float32([1, 0.3, 2])
# (loss, confidence of the rows, sum of the loss, tokens that count), of text rows.
LOSSES = [
    (LossConfig(), None, 302.03568, 33),
    (LossConfig(0.1), None, 305.10596, 33),
    (LossConfig(0.1), CONFIDENCE, 300.41110, 33),
    (LossConfig(0.1, drop_worst=(0.2, 0)), CONFIDENCE, 164.41252, 26),
    (LossConfig(0.1, constraint_range=(100, 200)), None, 272.69583, 33),
    (LossConfig(0.1, encouraging_log_end=0.75, drop_worst=(0.05, 0)), None, 276.38695, 31),
]


def within(targets: np.ndarray, allowed: tuple[int, int]) -> np.ndarray:
    """Returns targets of which those outside the range are EOS, as the measured ones were."""
    return np.where((targets > 3) & ((targets < allowed[0]) | (targets >= allowed[1])), 2, targets)


# The best hypothesis of each of the three rows.
SEARCHES = {
    "n-grams, normalised": (
        DecodeConfig(beam=5, max_len=6, min_len=1, no_repeat_ngram=3), None,
        [-2.3210, -2.4011, -2.0997],
        [[15, 15, 15, 100, 100, 100, 2], [15, 15, 15, 100, 100, 100, 2], [281, 281, 281, 284, 284, 284, 2]],
    ),
    "exactly four tokens": (
        DecodeConfig(beam=5, max_len=4, min_len=4, no_repeat_ngram=3), None,
        [-2.9672, -3.0441, -2.8341],
        [[15, 15, 15, 100, 2], [15, 15, 15, 100, 2], [90, 90, 90, 180, 2]],
    ),
    "length penalty": (
        DecodeConfig(beam=4, max_len=9, no_repeat_ngram=2, lenpen=0.7), None,
        [-5.6465, -5.4191, -4.1368],
        [[15, 15, 262, 262, 159, 159, 104, 104, 159, 2]] * 2 + [[90, 90, 180, 180, 184, 184, 94, 94, 68, 2]],
    ),
    "codes in a range": (
        DecodeConfig(beam=3, max_len=6, min_len=6, fixed_length=True), IdRange(100, 200),
        [-2.0946, -2.2149, -1.5957],
        [[185] * 6 + [2], [192] * 6 + [2], [127] * 6 + [2]],
    ),
}  # fmt: skip


def vqgan_state(config: VQGANConfig) -> dict[str, np.ndarray]:
    """Returns a VQGAN's state dict drawn from the field: taming's names, PyTorch's layout, float64; its codebook is the bare field."""
    return {name: field(name, shape) if "embed" in name else parameter(name, shape) for name, shape in taming.shapes(config).items()}


def vqgan_pixels() -> np.ndarray:
    """Returns the two input pictures of the small VQGAN, in [-1, 1), as [2, 32, 32, 3]."""
    return field("vqimg", (2, 3, 32, 32)).transpose(0, 2, 3, 1)
