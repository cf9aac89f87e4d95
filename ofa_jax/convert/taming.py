"""Weights of taming-transformers' VQGANs in and out: names, structure from shapes, strict import, export.

A Lightning file holds the tensors under `state_dict`. OFA loads it with `strict=False`, which gives a missing tensor a random value
without a word; here every fault is listed and nothing is written. Tensors under `loss.` (discriminator, LPIPS) are no part of the
model and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ofa_jax.config.errors import ConvertError
from ofa_jax.config.schema import VQGANConfig
from ofa_jax.convert.names import Layout, Tensor
from ofa_jax.convert.weights import refuse_faults, tensor_faults
from ofa_jax.models import vqgan
from ofa_jax.parallel.rules import key_path_parts

State = Mapping[str, np.ndarray]

SIGN = "quant_conv.weight"  # a name that only a VQGAN's state has
IGNORED = "loss."  # what training has beside the model
_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
_ATTENTION = {"norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out"}


def is_vqgan(state: Mapping[str, Any]) -> bool:
    """Returns whether a state's names are those of a VQGAN."""
    return SIGN in state


def tensors(config: VQGANConfig) -> tuple[Tensor, ...]:
    """Returns every tensor of the model with taming's name (source: the modules of taming/modules/diffusionmodules and vqvae)."""
    found: list[Tensor] = []

    def add(path: str, name: str, layout: Layout = "same") -> None:
        found.append(Tensor("params", tuple(path.split("/")), name, layout))

    def convolution(path: str, name: str) -> None:
        add(f"{path}/kernel", f"{name}.weight", "convolution")
        add(f"{path}/bias", f"{name}.bias")

    def norm(path: str, name: str) -> None:
        add(f"{path}/scale", f"{name}.weight")
        add(f"{path}/bias", f"{name}.bias")

    def module(path: str, name: str, parts: dict[str, str]) -> None:
        for ours, theirs in parts.items():
            (norm if "norm" in ours else convolution)(f"{path}/{ours}", f"{name}.{theirs}")

    def block(path: str, name: str, num_in: int, num_out: int) -> None:
        module(path, name, _BLOCK)
        if num_in != num_out:
            convolution(f"{path}/shortcut", f"{name}.nin_shortcut")

    last = len(config.multiples) - 1
    widths = [config.level_width(level) for level in range(last + 1)]
    for part, stage, levels, blocks in (
        ("encoder", "down", list(range(last + 1)), config.num_blocks),
        ("decoder", "up", list(reversed(range(last + 1))), config.num_blocks + 1),
    ):
        convolution(f"{part}/conv_in", f"{part}.conv_in")
        channels = config.width if part == "encoder" else widths[-1]
        for level in levels:
            ours, theirs = f"{part}/level{level}", f"{part}.{stage}.{level}"
            for i in range(blocks):
                block(f"{ours}/block{i}", f"{theirs}.block.{i}", channels, widths[level])
                channels = widths[level]
                if level in config.attention_levels:
                    module(f"{ours}/attention{i}", f"{theirs}.attn.{i}", _ATTENTION)
            if level != levels[-1]:
                convolution(f"{ours}/resample", f"{theirs}.{stage}sample.conv")
        block(f"{part}/middle/block0", f"{part}.mid.block_1", widths[-1], widths[-1])
        module(f"{part}/middle/attention", f"{part}.mid.attn_1", _ATTENTION)
        block(f"{part}/middle/block1", f"{part}.mid.block_2", widths[-1], widths[-1])
        norm(f"{part}/norm", f"{part}.norm_out")
        convolution(f"{part}/conv_out", f"{part}.conv_out")
    convolution("pre_quantizer", "quant_conv")
    convolution("post_quantizer", "post_quant_conv")
    if config.quantizer == "gumbel":
        convolution("scorer", "quantize.proj")
    add("codebook", "quantize.embed.weight" if config.quantizer == "gumbel" else "quantize.embedding.weight")
    return tuple(found)


def config_of(state: State, *, where: str) -> VQGANConfig:
    """Returns the structure that a state's names and shapes say; strides, groups and epsilon are the same in all of taming's models.

    `where` begins an error's sentence. Raises ConvertError when a tensor that is needed for it is missing, or the widths are no multiples
    of the first level's.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            some = ", ".join(list(state)[:3]) or "nothing"
            raise ConvertError(f"{where}: found no {name} among {len(state)} tensors ({some} ...), expected the weights of a VQGAN")
        if state[name].ndim < 1:
            raise ConvertError(f"{where}: {name}: found a single number, expected at least one dimension")
        return tuple(state[name].shape)

    def numbers(pattern: str) -> list[int]:
        return sorted({int(found[1]) for name in state if (found := re.match(pattern, name))})

    width = shape("encoder.conv_in.weight")[0]
    levels = numbers(r"encoder\.down\.(\d+)\.")
    widths = [shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(len(levels))]
    if not widths or any(w % width for w in widths):
        raise ConvertError(f"{where}: found levels of {widths} channels, expected multiples of encoder.conv_in's {width}")
    gumbel = "quantize.proj.weight" in state
    codes = shape("quantize.embed.weight" if gumbel else "quantize.embedding.weight")
    return VQGANConfig(
        width=width,
        multiples=tuple(w // width for w in widths),
        num_blocks=len(numbers(r"encoder\.down\.0\.block\.(\d+)\.")),
        attention_levels=tuple(numbers(r"encoder\.down\.(\d+)\.attn\.")),
        latent_width=shape("encoder.conv_out.weight")[0],
        num_codes=codes[0],
        code_width=codes[-1],
        quantizer="gumbel" if gumbel else "nearest",
    )


def _abstract(config: VQGANConfig) -> Any:
    return jax.eval_shape(lambda: vqgan.create(config, jax.random.key(0))[1])


def _slots(config: VQGANConfig) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Yields every tensor with PyTorch's shape of it."""
    leaves = {key_path_parts(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(_abstract(config))[0]}
    found = tensors(config)
    if {tensor.path for tensor in found} != set(leaves):
        raise AssertionError(f"the name map and the model differ in {sorted({t.path for t in found} ^ set(leaves))}")
    for tensor in found:
        yield tensor, tensor.torch_shape(leaves[tensor.path].shape)


def shapes(config: VQGANConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor by taming's name."""
    return {tensor.name: shape for tensor, shape in _slots(config)}


def from_state(state: State, config: VQGANConfig, *, where: str) -> Any:
    """Returns the parameters of a whole state dict as a tree of NumPy arrays like `vqgan.create`'s, in float32 (float64 stays).

    Raises ConvertError that lists every tensor that is missing, not expected, of another shape, no float, or not finite.
    """
    found = {name: array for name, array in state.items() if not name.startswith(IGNORED)}
    slots = list(_slots(config))
    expected = {tensor.name: shape for tensor, shape in slots}
    faults = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    faults += [f"not expected: {name} {tuple(array.shape)}" for name, array in found.items() if name not in expected]
    for name, shape in expected.items():
        if name in found:
            faults += tensor_faults(name, found[name], shape)
    refuse_faults(faults, where)
    dtype = np.float64 if all(array.dtype == np.float64 for array in found.values()) else np.float32
    arrays = {tensor.path: np.ascontiguousarray(tensor.from_torch(found[tensor.name]), dtype) for tensor, _ in slots}
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[key_path_parts(path)], _abstract(config))


def to_state(params: Any, config: VQGANConfig) -> dict[str, np.ndarray]:
    """Returns the state dict of a model's parameters: taming's names, PyTorch's order of dimensions."""
    values = {key_path_parts(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    return {tensor.name: np.ascontiguousarray(tensor.to_torch(values[tensor.path])) for tensor, _ in _slots(config)}
