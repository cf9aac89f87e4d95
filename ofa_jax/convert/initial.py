"""First weights from other models: BART or RoBERTa for the language part, an ImageNet ResNet for the image front.

OFA's base and large start from BART (OFA's checkpoints page), by tensor name: BART's post-norms become the pre-norms of the same name.
What OFA adds (head scales, the norms after attention and inside the feed-forward, position projections, relative tables, everything
of pictures) has no counterpart and stays as drawn. BART's text position p lies in row p + 2 of its table, ours in row p.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from ofa_jax.config.errors import ConvertError
from ofa_jax.convert.names import EMBEDDING

State = Mapping[str, np.ndarray]

_POSITION_OFFSET = 2  # fairseq counts positions from its padding id + 1
_PREFIXES = r"^(model\.|bart\.|roberta\.|decoder\.sentence_encoder\.|encoder\.sentence_encoder\.)"
# RoBERTa's names in transformers -> fairseq's, behind `encoder.layer.<i>.`
_ROBERTA = {
    "attention.self.query": "self_attn.q_proj", "attention.self.key": "self_attn.k_proj", "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj", "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1", "output.dense": "fc2", "output.LayerNorm": "final_layer_norm",
}  # fmt: skip
_ROBERTA_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": EMBEDDING,
    "embeddings.position_embeddings.weight": "encoder.embed_positions.weight",
    "embeddings.LayerNorm.weight": "encoder.layernorm_embedding.weight",
    "embeddings.LayerNorm.bias": "encoder.layernorm_embedding.bias",
}
_LAYER = re.compile(
    r"^(encoder|decoder)\.layers\.\d+\.((self_attn|encoder_attn)\.(q|k|v|out)_proj|self_attn_layer_norm|encoder_attn_layer_norm|"
    r"final_layer_norm|fc1|fc2)\.(weight|bias)$"
)
_STAGES = re.compile(r"^(conv1|bn1|layer[123])\.")


def language_tensors(state: State, *, num_text: int, num_positions: int, where: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns (OFA's tensors by fairseq's name, names that have no place in OFA) of a BART or RoBERTa state dict.

    num_text: text ids of the vocabulary; rows beyond them are left out, as the ids of both agree up to there only. num_positions:
    rows of OFA's text position tables. Raises ConvertError when the state has no layer of either model.
    """
    found: dict[str, np.ndarray] = {}
    unused: list[str] = []
    for name, array in state.items():
        theirs = _fairseq_name(name)
        if theirs in ("shared.weight", EMBEDDING):
            found[EMBEDDING] = array[:num_text]
        elif theirs in ("encoder.embed_positions.weight", "decoder.embed_positions.weight"):
            found[theirs] = array[_POSITION_OFFSET:][:num_positions]
        elif _LAYER.match(theirs) or re.match(r"^(encoder|decoder)\.layernorm_embedding\.(weight|bias)$", theirs):
            found[theirs] = array
        else:
            unused.append(name)
    if not any(_LAYER.match(name) for name in found):
        raise ConvertError(f"{where}: found no layer among {len(state)} tensors, expected the state dict of BART or RoBERTa")
    return found, unused


def _fairseq_name(name: str) -> str:
    sentence_encoder = re.match(r"^(decoder|encoder)\.sentence_encoder\.", name) is not None
    name = re.sub(_PREFIXES, "", name)
    layer = re.match(r"^encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$", name)
    if layer and layer[2] in _ROBERTA:
        return f"encoder.layers.{layer[1]}.{_ROBERTA[layer[2]]}.{layer[3]}"
    if name in _ROBERTA_EMBEDDINGS:
        return _ROBERTA_EMBEDDINGS[name]
    if sentence_encoder:  # fairseq's RoBERTa: one stack, whatever it is filed under
        name = re.sub(r"^emb_layer_norm\.", "layernorm_embedding.", name)
        return f"encoder.{name}"
    return name


def resnet_tensors(state: State, *, where: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns (OFA's tensors by fairseq's name, names that have no place in OFA) of a torchvision ResNet's state dict.

    Stage 4 and the classifier have no place; counters of batches are left out. Raises ConvertError when it is no bottleneck ResNet.
    """
    if "layer1.0.conv3.weight" not in state or "conv1.weight" not in state:
        raise ConvertError(f"{where}: found no conv1.weight and layer1.0.conv3.weight, expected torchvision's ResNet-50, 101 or 152")
    found = {
        f"encoder.embed_images.{name}": array
        for name, array in state.items()
        if _STAGES.match(name) and not name.endswith("num_batches_tracked")
    }
    unused = [name for name in state if not _STAGES.match(name)]
    return found, unused
