"""The name map: complete and one to one for all sizes, both styles of names, and the counts of the official state dicts."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ofa_jax.config.schema import VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.convert.architecture import model_of, size_of, vocab_of
from ofa_jax.convert.names import from_hf, is_hf, tensors, to_hf
from ofa_jax.convert.transfer import count_parameters
from ofa_jax.convert.weights import Weights, shapes, to_state
from ofa_jax.models import ofa

# model.md 1.1: entries of the official state dict, and parameters
COUNTS = {
    "tiny": (543, 33_488_336),
    "medium": (849, 92_892_000),
    "base": (967, 182_238_536),
    "large": (1627, 472_977_152),
    "huge": (1903, 929_486_848),
}


def entry_names(size: str, style: str) -> list[str]:
    """The names of the whole state dict, from weights that take no memory."""
    model, vocab = SIZES[size], VocabConfig()
    params = jax.eval_shape(lambda: ofa.create(model, vocab, jax.random.key(0))[1])
    nothing = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params)
    stats = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), jax.eval_shape(lambda: ofa.init_stats(model)))
    return list(to_state(Weights(nothing, stats), model, vocab, style=style))


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_entries_are_those_of_the_official_state_dict(size):
    names = entry_names(size, "fairseq")
    assert len(names) == len(set(names)) == COUNTS[size][0]
    assert len(entry_names(size, "hf")) == COUNTS[size][0] - 2  # no version buffers


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size):
    assert count_parameters(SIZES[size], VocabConfig()) == COUNTS[size][1]
    floats = len(shapes(SIZES[size], VocabConfig()))
    norms = sum(name.endswith("running_var") for name in shapes(SIZES[size], VocabConfig()))
    assert floats + norms + 2 + 5 + 2 == COUNTS[size][0]  # counters, the two other copies of the matrix, buffers, versions


@pytest.mark.parametrize("size", COUNTS)
def test_a_size_is_recognised_by_its_shapes(size):
    stored = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes(SIZES[size], VocabConfig()).items()}
    model = model_of(stored, where="here")
    assert size_of(model) == size
    assert model == SIZES[size]
    assert vocab_of(stored, where="here") == VocabConfig()


def test_names_translate_back_and_forth(model):
    names = [name for tensor in tensors(model) for name in tensor.names(30)]
    assert len(set(names)) == len(names)
    assert [from_hf(to_hf(name)) for name in names] == names
    assert len({to_hf(name) for name in names}) == len(names)
    assert is_hf({to_hf(name) for name in names}) and not is_hf(set(names))


@pytest.mark.parametrize(
    ("fairseq", "hf"),
    [
        ("encoder.layers.3.attn_ln.weight", "encoder.layers.3.self_attn_mid_layer_norm.weight"),
        ("decoder.layers.0.self_attn_ln.bias", "decoder.layers.0.self_attn_mid_layer_norm.bias"),
        ("decoder.layers.0.cross_attn_ln.bias", "decoder.layers.0.cross_attn_mid_layer_norm.bias"),
        ("decoder.layers.11.encoder_attn.c_attn", "decoder.layers.11.cross_attn.c_attn"),
        ("decoder.layers.11.encoder_attn.q_proj.weight", "decoder.layers.11.cross_attn.q_proj.weight"),
        ("decoder.layers.1.encoder_attn_layer_norm.weight", "decoder.layers.1.cross_attn_layer_norm.weight"),
        ("encoder.layers.1.ffn_layernorm.weight", "encoder.layers.1.ffn_layer_norm.weight"),
        ("encoder.layers.1.final_layer_norm.weight", "encoder.layers.1.final_layer_norm.weight"),
        ("encoder.embed_images.layer2.0.downsample.1.running_var", "encoder.embed_images.layer2.0.downsample.1.running_var"),
    ],
)
def test_hf_style_names(fairseq, hf):
    assert to_hf(fairseq) == hf
    assert from_hf(hf) == from_hf(f"model.{hf}") == fairseq


def test_small_variants_are_recognised(model, golden):
    from ofa_jax.convert.weights import buffers

    stored = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes(model, golden.VOCAB).items()} | buffers(model)
    found = model_of(stored, where="here")
    rates = {name: getattr(found, name) for name in ("dropout", "encoder_drop_path_rate", "decoder_drop_path_rate")}
    assert found == dataclasses.replace(model, **rates)
