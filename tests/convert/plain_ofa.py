"""OFA's forward pass in plain NumPy, float64, on a state dict under fairseq's names: slow, literal, and sharing nothing with the models.

Written from the equations (OFA paper and official modules): every relative bias by its bucket formula, every mask by -inf.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erf

State = dict[str, np.ndarray]


def forward(state: State, inputs: dict[str, np.ndarray], *, code_grid: int) -> dict[str, np.ndarray]:
    """Returns the outputs that `ofa_jax.convert.verify` compares, batch first."""
    state = _Doubles(state)
    source, target = inputs["src_tokens"], inputs["prev_output_tokens"]
    codes = inputs.get("code_masks", np.zeros(len(source), bool)).astype(bool)
    out: dict[str, np.ndarray] = {}
    heads = state["encoder.layers.0.self_attn.c_attn"].shape[0]
    side = math.isqrt(state["encoder.embed_image_positions.weight"].shape[0] - 1)
    x, pad, positions, ids = _embed_source(state, source, inputs, side, out)
    out["encoder_padding_mask"], out["position_embeddings"] = pad, positions
    absolute = _absolute(state, "encoder.pos_q_linear", "encoder.pos_k_linear", positions, positions, heads)
    for layer in range(_depth(state, "encoder")):
        out[f"encoder_state_{layer}"] = x
        name = f"encoder.layers.{layer}"
        bias = absolute.copy()
        places = 0 if ids is None else ids.shape[1]
        bias[:, :, places:, places:] += _relative_1d(state, f"encoder.token_rel_pos_table_list.{layer}.weight", source.shape[1])
        if ids is not None:
            bias[:, :, :places, :places] += _relative_2d(state, f"encoder.image_rel_pos_table_list.{layer}.weight", ids, side)
        h = _norm(state, f"{name}.self_attn_layer_norm", x)
        h, _ = _attend(state, f"{name}.self_attn", h, h, bias, pad[:, None, None], heads, _prompt(state, "encoder", layer, heads))
        x = x + _norm(state, f"{name}.attn_ln", h)
        x = x + _feed_forward(state, name, x)
    out[f"encoder_state_{_depth(state, 'encoder')}"] = x
    memory = out["encoder_out"] = _norm(state, "encoder.layer_norm", x)

    length = target.shape[1]
    embedded = state["encoder.embed_tokens.weight"][target]
    on_text, on_code = _norm(state, "decoder.layernorm_embedding", embedded), _norm(state, "decoder.code_layernorm_embedding", embedded)
    x = np.where(codes[:, None, None], on_code, on_text)
    cells = np.arange(code_grid)
    code_ids = np.concatenate([[0], (side * cells[:, None] + cells + 1).reshape(-1), np.full(length, min(1024, side * side))])[:length]
    text_positions = _norm(state, "decoder.pos_ln", state["decoder.embed_positions.weight"][:length])
    code_positions = _norm(state, "decoder.image_pos_ln", state["decoder.embed_image_positions.weight"][code_ids])
    places = np.where(codes[:, None, None], code_positions, text_positions)
    self_absolute = _absolute(state, "decoder.self_pos_q_linear", "decoder.self_pos_k_linear", places, places, heads)
    cross_bias = _absolute(state, "decoder.cross_pos_q_linear", "decoder.cross_pos_k_linear", places, positions, heads)
    later = np.triu(np.ones((length, length), bool), 1)
    hidden_keys = later[None, None] | (target == 1)[:, None, None]
    for layer in range(_depth(state, "decoder")):
        out[f"decoder_state_{layer}"] = x
        name = f"decoder.layers.{layer}"
        text = _relative_1d(state, f"decoder.token_rel_pos_table_list.{layer}.weight", length)
        code = _relative_2d(state, f"decoder.image_rel_pos_table_list.{layer}.weight", code_ids[None], side)
        bias = self_absolute + np.where(codes[:, None, None, None], code, text)
        h = _norm(state, f"{name}.self_attn_layer_norm", x)
        h, _ = _attend(state, f"{name}.self_attn", h, h, bias, hidden_keys, heads, _prompt(state, "decoder", layer, heads))
        x = x + _norm(state, f"{name}.self_attn_ln", h)
        h = _norm(state, f"{name}.encoder_attn_layer_norm", x)
        h, looked = _attend(state, f"{name}.encoder_attn", h, memory, cross_bias, pad[:, None, None], heads)
        x = x + _norm(state, f"{name}.cross_attn_ln", h)
        x = x + _feed_forward(state, name, x)
    out[f"decoder_state_{_depth(state, 'decoder')}"] = x
    out["cross_attn"] = looked.mean(1)
    out["logits"] = _norm(state, "decoder.layer_norm", x) @ state["encoder.embed_tokens.weight"].T
    return out


class _Doubles(dict):
    """A state read in float64, tensor by tensor, so that a large one is never doubled whole."""

    def __getitem__(self, name: str) -> np.ndarray:
        return super().__getitem__(name).astype(np.float64)


def _depth(state: State, stack: str) -> int:
    return 1 + max(int(name.split(".")[2]) for name in state if name.startswith(f"{stack}.layers."))


def _linear(state: State, name: str, x: np.ndarray) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _feed_forward(state: State, name: str, x: np.ndarray) -> np.ndarray:
    h = _linear(state, f"{name}.fc1", _norm(state, f"{name}.final_layer_norm", x))
    h = 0.5 * h * (1 + erf(h / math.sqrt(2)))
    h = _linear(state, f"{name}.fc2", _norm(state, f"{name}.ffn_layernorm", h))
    if f"{name}.adapter.down_proj.weight" not in state:
        return h
    return h + _linear(state, f"{name}.adapter.up_proj", np.maximum(_linear(state, f"{name}.adapter.down_proj", h), 0))


def _prompt(state: State, stack: str, layer: int, heads: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys and values [heads, length, width / heads] of one layer: places 2 * layer and 2 * layer + 1 of the table's rows."""
    name = f"{stack}.{stack}_prompt_encoder.embedding.weight"
    if name not in state:
        return None
    table = state[name].reshape(len(state[name]), 2 * _depth(state, stack), heads, -1)
    return table[:, 2 * layer].swapaxes(0, 1), table[:, 2 * layer + 1].swapaxes(0, 1)


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _scale(width: int, heads: int) -> float:
    return (width / heads * 2) ** -0.5


def _absolute(state: State, query: str, key: str, rows: np.ndarray, columns: np.ndarray, heads: int) -> np.ndarray:
    q = _heads(_linear(state, query, rows) * _scale(rows.shape[-1], heads), heads)
    return q @ _heads(_linear(state, key, columns), heads).swapaxes(2, 3)


def _attend(
    state: State,
    name: str,
    x: np.ndarray,
    memory: np.ndarray,
    bias: np.ndarray,
    hidden: np.ndarray,
    heads: int,
    prompt: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    q = _heads(_linear(state, f"{name}.q_proj", x) * _scale(x.shape[-1], heads), heads)
    k, v = (_heads(_linear(state, f"{name}.{part}_proj", memory), heads) for part in "kv")
    scores = np.where(hidden, -np.inf, q @ k.swapaxes(2, 3) + bias)
    if prompt is not None:  # seen by all, without bias
        scores = np.concatenate([q @ prompt[0].swapaxes(1, 2), scores], -1)
        v = np.concatenate([np.broadcast_to(prompt[1], (len(v), *prompt[1].shape)), v], 2)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mixed = (p @ v) * state[f"{name}.c_attn"][:, None, None]
    return _linear(state, f"{name}.out_proj", mixed.transpose(0, 2, 1, 3).reshape(x.shape)), p


def _relative_1d(state: State, name: str, length: int) -> np.ndarray:
    table = state[name]
    size = (table.shape[0] + 1) // 2
    middle, reach = size // 2, 1024
    bucket = np.zeros((length, length), int)
    for i in range(length):
        for j in range(length):
            far = abs(i - j)
            if far > middle:
                far = middle + math.ceil(math.log(far / middle) / math.log((reach - 1) / middle) * (middle - 1))
            bucket[i, j] = (far if i > j else -far) + size - 1
    return table[bucket].transpose(2, 0, 1)[None]


def _relative_2d(state: State, name: str, ids: np.ndarray, side: int) -> np.ndarray:
    table = state[name]
    a, b = ids[:, :, None], ids[:, None]
    row, column = (a - 1) // side - (b - 1) // side, (a - 1) % side - (b - 1) % side
    bucket = (row + side - 1) * (2 * side - 1) + column + side - 1
    square = (2 * side - 1) ** 2
    bucket = np.where((a == 0) & (b == 0), square + 2, np.where(a == 0, square, np.where(b == 0, square + 1, bucket)))
    return table[bucket].transpose(0, 3, 1, 2)


def _embed_source(
    state: State, source: np.ndarray, inputs: dict[str, np.ndarray], side: int, out: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    rows, length = source.shape
    types = state["encoder.type_embedding.weight"]
    x = _norm(state, "encoder.layernorm_embedding", state["encoder.embed_tokens.weight"][source] + types[0])
    positions = _norm(state, "encoder.pos_ln", state["encoder.embed_positions.weight"][:length])
    positions, pad, ids = np.broadcast_to(positions, (rows, *positions.shape)), source == 1, None
    if "patch_images" in inputs:
        maps = out["resnet"] = _resnet(state, inputs["patch_images"].astype(np.float64))
        height, width = maps.shape[2:]
        features = maps.reshape(rows, maps.shape[1], -1).swapaxes(1, 2)
        ids = np.tile((side * np.arange(height)[:, None] + np.arange(width) + 1).reshape(1, -1), (rows, 1))
        if "patch_orders" in inputs:
            order = inputs["patch_orders"].astype(int)
            features = np.take_along_axis(features, order[..., None], 1)
            ids = np.take_along_axis(ids, order, 1)
        image = _norm(state, "encoder.patch_layernorm_embedding", _linear(state, "encoder.image_proj", features) + types[1])
        shown = inputs.get("patch_masks", np.ones(rows, bool)).astype(bool)
        x = np.concatenate([image, x], 1)
        pad = np.concatenate([np.repeat(~shown[:, None], ids.shape[1], 1), pad], 1)
        image_positions = _norm(state, "encoder.image_pos_ln", state["encoder.embed_image_positions.weight"][ids])
        positions = np.concatenate([image_positions, positions], 1)
    return x * ~pad[..., None], pad, positions, ids


def _resnet(state: State, x: np.ndarray) -> np.ndarray:
    """x [B, 3, h, w] -> [B, C, h', w']; torchvision's bottleneck network up to its third stage."""

    def batch_norm(name: str, x: np.ndarray) -> np.ndarray:
        mean, var, weight, bias = (state[f"{at}.{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        gain = weight / np.sqrt(var + 1e-5)
        return x * gain[:, None, None] + (bias - mean * gain)[:, None, None]

    def conv(name: str, x: np.ndarray, stride: int, padding: int) -> np.ndarray:
        return _convolve(x, state[f"{at}.{name}.weight"], stride, padding)

    at = "encoder.embed_images"
    x = np.maximum(batch_norm("bn1", conv("conv1", x, 2, 3)), 0)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    height, width = (padded.shape[2] - 3) // 2 + 1, (padded.shape[3] - 3) // 2 + 1
    x = np.max([padded[:, :, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3)], axis=0)
    stage = 1
    while f"{at}.layer{stage}.0.conv1.weight" in state:
        block = 0
        while f"{at}.layer{stage}.{block}.conv1.weight" in state:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            h = np.maximum(batch_norm(f"{name}.bn1", conv(f"{name}.conv1", x, 1, 0)), 0)
            h = np.maximum(batch_norm(f"{name}.bn2", conv(f"{name}.conv2", h, stride, 1)), 0)
            h = batch_norm(f"{name}.bn3", conv(f"{name}.conv3", h, 1, 0))
            if block == 0:
                x = batch_norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride, 0))
            x = np.maximum(x + h, 0)
            block += 1
        stage += 1
    return x


def _convolve(x: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    size = kernel.shape[-1]
    height, width = (x.shape[2] - size) // stride + 1, (x.shape[3] - size) // stride + 1
    out = 0.0
    for i in range(size):
        for j in range(size):
            view = x[:, :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
            out = out + np.einsum("oc,bchw->bohw", kernel[:, :, i, j], view, optimize=True)
    return out
