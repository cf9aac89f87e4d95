"""Comparing a model's insides with stored outputs of another program, array by array.

Inputs (`.npz`): `src_tokens` [B, L], `prev_output_tokens` [B, T]; optionally `patch_images` [B, 3, H, W] (normalised), `patch_masks` [B],
`code_masks` [B], `src_lengths` [B] (compared with the padding) and `patch_orders` [B, k], the row-major indices of the sampled patches.
Expected (`.npz`): any of the names in `OUTPUTS`, batch first. The error of an array is max|a - b| / std(b) over unpadded positions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ofa_jax.config.errors import ConvertError
from ofa_jax.config.schema import PAD_ID, ModelConfig, VocabConfig
from ofa_jax.convert.weights import Weights
from ofa_jax.models import ofa
from ofa_jax.models.decoder import CodeRows

OUTPUTS = (
    "resnet", "encoder_padding_mask", "position_embeddings", "encoder_state_<i>", "encoder_out",
    "decoder_state_<i>", "cross_attn", "logits",
)  # fmt: skip
_INPUTS = {
    "src_tokens": (2, "iu"), "prev_output_tokens": (2, "iu"), "patch_images": (4, "f"), "patch_masks": (1, "b"), "code_masks": (1, "b"),
    "src_lengths": (1, "iu"), "patch_orders": (2, "iu"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One stored array beside ours."""

    name: str
    shape: tuple[int, ...]
    error: float  # max|a - b| / std(b); infinite where shapes or masks differ
    note: str = ""  # what is wrong where it is no matter of numbers


def check_inputs(inputs: Mapping[str, np.ndarray], model: ModelConfig, vocab: VocabConfig, *, where: str) -> None:
    """Raises ConvertError naming the first input that is missing, unknown, or of a wrong shape, kind or range."""

    def refuse(name: str, found: Any, expected: str) -> ConvertError:
        return ConvertError(f"{where}: {name}: found {found}, expected {expected}")

    for name, array in inputs.items():
        if name not in _INPUTS:
            raise refuse(name, "an unknown array", f"some of {', '.join(_INPUTS)}")
        dims, kinds = _INPUTS[name]
        if array.ndim != dims or array.dtype.kind not in kinds + ("iu" if kinds == "b" else ""):
            raise refuse(name, f"{array.dtype} {array.shape}", f"{dims} dimension(s) of kind {kinds}")
    for name in ("src_tokens", "prev_output_tokens"):
        if name not in inputs:
            raise refuse(name, "no such array", "it among the inputs")
        low, high = int(inputs[name].min(initial=0)), int(inputs[name].max(initial=0))
        if low < 0 or high >= vocab.size:
            raise refuse(name, f"id {low if low < 0 else high}", f"0 to {vocab.size - 1}")
    rows = inputs["src_tokens"].shape[0]
    for name, array in inputs.items():
        if array.shape[0] != rows:
            raise refuse(name, f"{array.shape[0]} rows", f"{rows} as in src_tokens")
    if "src_lengths" in inputs:
        lengths = (inputs["src_tokens"] != PAD_ID).sum(1)
        if not np.array_equal(lengths, inputs["src_lengths"]):
            raise refuse("src_lengths", inputs["src_lengths"].tolist(), f"{lengths.tolist()}, the tokens that are not padding")
    padding = inputs["src_tokens"] == PAD_ID
    if (padding[:, :-1] & ~padding[:, 1:]).any():
        raise refuse("src_tokens", "padding before a token", "padding at the right end only")
    without = f"none of it, as model.without={','.join(model.without)}"
    if "patch_images" in inputs and not model.reads_pictures:
        raise refuse("patch_images", "it", without)
    if np.any(inputs.get("code_masks", False)) and not model.writes_codes:
        raise refuse("code_masks", "rows of image codes", without)
    if "patch_images" not in inputs:
        for name in ("patch_orders", "patch_masks"):
            if name in inputs:
                raise refuse(name, "it without patch_images", "both or neither")
        return
    height, width = _grid(inputs["patch_images"].shape, model)
    side = model.image_bucket_size
    if height > side or width > side:
        raise refuse("patch_images", f"a grid of {height}x{width} patches", f"at most {side}x{side} (model.image_bucket_size)")
    orders = inputs.get("patch_orders")
    if orders is not None and orders.size and (orders.min() < 0 or orders.max() >= height * width):
        raise refuse("patch_orders", f"index {orders.min() if orders.min() < 0 else orders.max()}", f"0 to {height * width - 1}")


def _grid(shape: tuple[int, ...], model: ModelConfig) -> tuple[int, int]:
    """Rows and columns of patches of a picture; every layer with stride 2 rounds up."""
    stride = model.resnet.stride
    return -(-shape[2] // stride), -(-shape[3] // stride)


def _code_rows(code_masks: np.ndarray | None) -> CodeRows:
    if code_masks is None or not code_masks.any():
        return "none"
    return "all" if code_masks.all() else "mixed"


def run(
    weights: Weights, inputs: Mapping[str, np.ndarray], model: ModelConfig, vocab: VocabConfig, *, precision: str = "f32"
) -> dict[str, np.ndarray]:
    """Returns every output of `OUTPUTS` for the inputs, batch first, the vocabulary's padding cut off; nothing random."""
    graphdef, _ = jax.eval_shape(lambda: ofa.create(model, vocab, jax.random.key(0), precision=precision))
    given = {name: jnp.asarray(inputs[name]) for name in ("src_tokens", "prev_output_tokens")}
    images = inputs.get("patch_images")
    if images is not None:
        given["pixels"] = jnp.asarray(images.transpose(0, 2, 3, 1))
        given["image_mask"] = jnp.asarray(inputs.get("patch_masks", np.ones(len(images), bool))).astype(bool)
        if "patch_orders" in inputs:
            given["patch_ids"] = jnp.asarray(inputs["patch_orders"])
    if "code_masks" in inputs:
        given["code_mask"] = jnp.asarray(inputs["code_masks"]).astype(bool)
    rows = _code_rows(inputs.get("code_masks"))

    @jax.jit
    def forward(params: Any, stats: Any, given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        network: ofa.OFA = nnx.merge(graphdef, params)
        out: dict[str, jax.Array] = {}
        features, grid = None, None
        if "pixels" in given:
            maps, _ = network.resnet(given["pixels"], stats=stats, train=False)
            out["resnet"], grid = maps.transpose(0, 3, 1, 2), maps.shape[1:3]
            features = maps.reshape(maps.shape[0], -1, maps.shape[-1])
        encoded = network.encode(
            given["src_tokens"], features, given.get("patch_ids"), given.get("image_mask"), grid=grid, keep_layers=True
        )
        assert encoded.layer_inputs is not None
        out.update({f"encoder_state_{i}": states for i, states in enumerate(encoded.layer_inputs)})
        out["encoder_out"], out["encoder_padding_mask"] = encoded.states, ~encoded.mask
        out["position_embeddings"] = jnp.broadcast_to(encoded.positions, encoded.states.shape)
        decoded = network.trace_decode(encoded, given["prev_output_tokens"], given.get("code_mask"), code_rows=rows)
        out.update({f"decoder_state_{i}": states for i, states in enumerate(decoded.layer_inputs)})
        out["cross_attn"] = decoded.cross_probabilities[-1]
        out["logits"] = network.logits(decoded.hidden)[..., : vocab.size]
        return out

    found = jax.device_get(forward(weights.params, weights.stats, given))
    return {name: found[name] for name in sorted(found, key=_place)}  # jit sorts by name


def _place(name: str) -> tuple[int, int]:
    """Where an output stands in the computation."""
    stem, _, number = name.rpartition("_") if name[-1].isdigit() else (name, "", "0")
    return [re.sub("_<i>", "", output) for output in OUTPUTS].index(stem), int(number)


def compare(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], *, where: str
) -> list[Comparison]:
    """Returns one line for every expected array, in the order of the computation; raises ConvertError for one that is no output."""
    for name in expected:
        if name not in found:
            raise ConvertError(f"{where}: found the array {name}, expected some of {', '.join(found)}")
    order = list(found)
    return [_compare(name, found, np.asarray(expected[name]), inputs) for name in sorted(expected, key=order.index)]


def _compare(name: str, found: Mapping[str, np.ndarray], theirs: np.ndarray, inputs: Mapping[str, np.ndarray]) -> Comparison:
    ours = np.asarray(found[name])
    if ours.shape != theirs.shape:
        return Comparison(name, theirs.shape, np.inf, f"found shape {ours.shape}, expected {theirs.shape}")
    if name == "encoder_padding_mask":
        wrong = int((ours != theirs.astype(bool)).sum())
        return Comparison(name, theirs.shape, np.inf if wrong else 0.0, f"{wrong} positions differ" if wrong else "")
    keep = np.ones(theirs.shape, bool)
    for axis, mask in _kept(name, found, inputs):
        keep &= mask.reshape([n if i in (0, axis) else 1 for i, n in enumerate(theirs.shape)])
    a, b = ours[keep].astype(np.float64), theirs[keep].astype(np.float64)
    if not np.isfinite(b).all():
        return Comparison(name, theirs.shape, np.inf, "the expected values are not all finite")
    spread = float(b.std()) if b.size else 1.0
    error = float(np.abs(a - b).max(initial=0.0)) / (spread or 1.0)
    return Comparison(name, theirs.shape, error if np.isfinite(error) else np.inf)


def _kept(name: str, found: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (axis, mask [B, length]) of the positions that count; positions themselves are given for padding too."""
    source, target = ~np.asarray(found["encoder_padding_mask"]), inputs["prev_output_tokens"] != PAD_ID
    if re.match(r"encoder_(state|out)", name):
        yield 1, source
    elif re.match(r"decoder_state|logits|cross_attn", name):
        yield 1, target
        if name == "cross_attn":
            yield 2, source
