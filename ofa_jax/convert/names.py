"""The one map between our parameters and the tensors of OFA's checkpoints, in both directions.

Names are fairseq's, as in the released `.pt` files; `to_hf` and `from_hf` translate them to those of the HF-style folders, which
differ in a few norms and in the cross attention only. Equal layers are stacked in ours and numbered in theirs, so one of our tensors
has as many names as layers. PyTorch stores a linear weight as (out, in) and a convolution as (out, in, height, width); ours are
(in, out) and (height, width, in, out).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Literal

import numpy as np

from ofa_jax.config.schema import OPTIONAL_PARTS, ModelConfig

Path = tuple[str, ...]
Layout = Literal["same", "linear", "convolution"]
_TO_TORCH: dict[str, tuple[int, ...]] = {"linear": (1, 0), "convolution": (3, 2, 0, 1)}  # dimension i of theirs is this one of ours


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of our tensors: where it lies in the tree of parameters or statistics, and what fairseq calls it."""

    tree: Literal["params", "stats"]
    path: Path
    name: str  # "{}" stands for the layer's number where the tensor is a stack
    layout: Layout = "same"
    first: int = 0  # number of the stack's first layer in fairseq's name

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    def names(self, num_layers: int) -> list[str]:
        """Returns fairseq's names, one a layer; one name if the tensor is no stack."""
        return [self.name.format(self.first + i) for i in range(num_layers)] if self.stacked else [self.name]

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns one layer of ours as a view in PyTorch's order of dimensions."""
        return array.transpose(_TO_TORCH[self.layout]) if self.layout in _TO_TORCH else array

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns PyTorch's tensor as a view in our order of dimensions; its number of dimensions must be right."""
        return array.transpose(np.argsort(_TO_TORCH[self.layout])) if self.layout in _TO_TORCH else array

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of one layer in PyTorch's order, from our shape of it."""
        return tuple(shape[i] for i in _TO_TORCH[self.layout]) if self.layout in _TO_TORCH else shape


EMBEDDING = "encoder.embed_tokens.weight"
TIED = (EMBEDDING, "decoder.embed_tokens.weight", "decoder.output_projection.weight")  # three names of one matrix

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_ENCODER_LAYER = {"self_norm": "self_attn_layer_norm", "self_out_norm": "attn_ln"}
_DECODER_LAYER = {
    "self_norm": "self_attn_layer_norm", "self_out_norm": "self_attn_ln",
    "cross_norm": "encoder_attn_layer_norm", "cross_out_norm": "cross_attn_ln",
}  # fmt: skip
_RESNET = "encoder.embed_images"


def has_image_cells(model: ModelConfig, stack: str) -> bool:
    """Returns whether a stack ("encoder", "decoder") knows places in a picture: of patches that it reads, or of codes that it writes."""
    return model.reads_pictures if stack == "encoder" else model.writes_codes


def left_group(name: str, model: ModelConfig) -> str:
    """Returns the module (`encoder.embed_images`) of fairseq's tensor or buffer `name` where it belongs to a part, of any size, that
    `model.without` names; else an empty text."""
    found = (pattern.match(name) for part, pattern in _OF_PART.items() if part in model.without)
    return next((one[0].rstrip(".") for one in found if one), "")


def absent_parts(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the parts (`OPTIONAL_PARTS`) of which a state with these names, fairseq's, has nothing."""
    names = tuple(names)
    return tuple(part for part in OPTIONAL_PARTS if not any(_OF_PART[part].match(name) for name in names))


_OF_PART = {
    "pictures": re.compile(
        r"encoder\.(embed_images|patch_layernorm_embedding|image_proj|embed_image_positions|image_pos_ln|image_rel_pos_table_list|"
        r"image_rp_bucket)(\.|$)"
    ),
    "codes": re.compile(
        r"decoder\.(code_layernorm_embedding|embed_image_positions|image_pos_ln|image_rel_pos_table_list|image_rp_bucket|image_position_idx)"
        r"(\.|$)"
    ),
}


def tensors(model: ModelConfig) -> tuple[Tensor, ...]:
    """Returns every tensor of the model: parameters and running batch-norm statistics (source: the official modules' state dict), of the
    parts that it has."""
    found: list[Tensor] = []

    def add(path: str, name: str, layout: Layout = "same", *, first: int = 0, tree: Literal["params", "stats"] = "params") -> None:
        found.append(Tensor(tree, tuple(path.split("/")), name, layout, first))

    def linear(path: str, name: str) -> None:
        add(f"{path}/kernel", f"{name}.weight", "linear")
        add(f"{path}/bias", f"{name}.bias")

    def norm(path: str, name: str, *, first: int = 0) -> None:
        add(f"{path}/scale", f"{name}.weight", first=first)
        add(f"{path}/bias", f"{name}.bias", first=first)

    def batch_norm(path: str, stats_path: str, name: str, *, first: int = 0) -> None:
        norm(f"resnet/{path}", f"{_RESNET}.{name}", first=first)
        add(f"{stats_path}/mean", f"{_RESNET}.{name}.running_mean", first=first, tree="stats")
        add(f"{stats_path}/var", f"{_RESNET}.{name}.running_var", first=first, tree="stats")

    add("embedding/table", EMBEDDING)
    add("encoder/types/table", "encoder.type_embedding.weight")
    norm("encoder/text_norm", "encoder.layernorm_embedding")
    if model.reads_pictures:
        norm("encoder/image_norm", "encoder.patch_layernorm_embedding")
        linear("encoder/image_proj", "encoder.image_proj")
    for part in ("query", "key"):
        linear(f"encoder/position_bias/{part}", f"encoder.pos_{part[0]}_linear")
        linear(f"decoder/self_position_bias/{part}", f"decoder.self_pos_{part[0]}_linear")
        linear(f"decoder/cross_position_bias/{part}", f"decoder.cross_pos_{part[0]}_linear")
    norm("decoder/text_norm", "decoder.layernorm_embedding")
    if model.writes_codes:
        norm("decoder/code_norm", "decoder.code_layernorm_embedding")

    for stack, layer, attentions in (
        ("encoder", _ENCODER_LAYER, {"self_attention": "self_attn"}),
        ("decoder", _DECODER_LAYER, {"self_attention": "self_attn", "cross_attention": "encoder_attn"}),
    ):
        add(f"{stack}/positions/text/table", f"{stack}.embed_positions.weight")
        has_cells = has_image_cells(model, stack)
        if has_cells:
            add(f"{stack}/positions/image/table", f"{stack}.embed_image_positions.weight")
        norm(f"{stack}/positions/text_norm", f"{stack}.pos_ln")
        if has_cells:
            norm(f"{stack}/positions/image_norm", f"{stack}.image_pos_ln")
        norm(f"{stack}/norm", f"{stack}.layer_norm")
        for kind in ("token", "image") if has_cells else ("token",):
            add(f"{stack}/layers/{kind}_relative", f"{stack}.{kind}_rel_pos_table_list.{{}}.weight")
        ours, theirs = f"{stack}/layers", f"{stack}.layers.{{}}"
        for name, their in layer.items():
            norm(f"{ours}/{name}", f"{theirs}.{their}")
        for name, their in attentions.items():
            add(f"{ours}/{name}/head_scale", f"{theirs}.{their}.c_attn")
            for projection, their_projection in _ATTENTION.items():
                linear(f"{ours}/{name}/{projection}", f"{theirs}.{their}.{their_projection}")
        norm(f"{ours}/ffn_norm", f"{theirs}.final_layer_norm")  # the norm before the feed-forward, not the stack's last
        linear(f"{ours}/ffn/expand", f"{theirs}.fc1")
        norm(f"{ours}/ffn/norm", f"{theirs}.ffn_layernorm")
        linear(f"{ours}/ffn/contract", f"{theirs}.fc2")
        if model.adapter_width:
            linear(f"{ours}/adapter/down", f"{theirs}.adapter.down_proj")
            linear(f"{ours}/adapter/up", f"{theirs}.adapter.up_proj")
        if model.prompt_lens[stack == "decoder"]:
            add(f"{stack}/prompt/embedding/table", f"{stack}.{stack}_prompt_encoder.embedding.weight")

    if not model.reads_pictures:
        return tuple(found)
    add("resnet/stem", f"{_RESNET}.conv1.weight", "convolution")
    batch_norm("stem_norm", "stem", "bn1")
    for stage, blocks in enumerate(model.resnet.blocks, start=1):
        for part, number, first in (("first", "0", 0), ("rest", "{}", 1)):  # the first block of a stage is stored by itself
            if part == "rest" and blocks == 1:
                continue
            ours, stats, theirs = f"stage{stage}_{part}", f"stage{stage}/{part}", f"layer{stage}.{number}"
            for i in (1, 2, 3):
                add(f"resnet/{ours}/kernel{i}", f"{_RESNET}.{theirs}.conv{i}.weight", "convolution", first=first)
                batch_norm(f"{ours}/norm{i}", f"{stats}/norm{i}", f"{theirs}.bn{i}", first=first)
            if part == "first":
                add(f"resnet/{ours}/shortcut", f"{_RESNET}.{theirs}.downsample.0.weight", "convolution")
                batch_norm(f"{ours}/shortcut_norm", f"{stats}/shortcut", f"{theirs}.downsample.1")
    return tuple(found)


# fairseq's name -> the HF-style ports' (both the transformers branch of OFA's authors and modelscope), in this order.
_TO_HF = (
    (r"^(encoder\.layers\.\d+)\.attn_ln\.", r"\1.self_attn_mid_layer_norm."),
    (r"^(decoder\.layers\.\d+)\.self_attn_ln\.", r"\1.self_attn_mid_layer_norm."),
    (r"^(decoder\.layers\.\d+)\.cross_attn_ln\.", r"\1.cross_attn_mid_layer_norm."),
    (r"^(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.cross_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+)\.encoder_attn\.", r"\1.cross_attn."),
    (r"\.ffn_layernorm\.", r".ffn_layer_norm."),
)
_FROM_HF = (
    (r"^(encoder\.layers\.\d+)\.self_attn_mid_layer_norm\.", r"\1.attn_ln."),
    (r"^(decoder\.layers\.\d+)\.self_attn_mid_layer_norm\.", r"\1.self_attn_ln."),
    (r"^(decoder\.layers\.\d+)\.cross_attn_mid_layer_norm\.", r"\1.cross_attn_ln."),
    (r"^(decoder\.layers\.\d+)\.cross_attn_layer_norm\.", r"\1.encoder_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+)\.cross_attn\.", r"\1.encoder_attn."),
    (r"\.ffn_layer_norm\.", r".ffn_layernorm."),
)


def to_hf(name: str) -> str:
    """Returns the HF-style name of a tensor from fairseq's."""
    return _rename(name, _TO_HF)


def from_hf(name: str) -> str:
    """Returns fairseq's name of a tensor from the HF-style one; a name that both share comes back as it is."""
    return _rename(name.removeprefix("model."), _FROM_HF)


def is_hf(names: set[str]) -> bool:
    """Returns whether a state's names are the HF-style ones: a name that fairseq's state never has tells."""
    return any(from_hf(name) != name for name in names)


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name
