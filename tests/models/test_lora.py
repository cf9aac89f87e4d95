"""Low-rank updates: nothing at the start, a model of their own as they learn, and the same model once they are merged."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ofa_jax.config.schema import ModelConfig, VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.models import ofa
from ofa_jax.models.lora import NAME, merged

VOCAB = VocabConfig(num_text=40, num_codes=16, num_bins=8, pad_multiple=32)
PLAIN = dataclasses.replace(SIZES["nano"], width=16, ffn_width=24, num_heads=2, encoder_layers=2, decoder_layers=2, lora_alpha=6.0)
LORA = dataclasses.replace(PLAIN, lora_rank=3)


def outputs(model: ModelConfig, params: nnx.State) -> jax.Array:
    """Logits for some tokens."""
    graphdef = jax.eval_shape(lambda key: ofa.create(model, VOCAB, key), jax.random.key(0))[0]
    source_ids, decoder_ids = np.random.default_rng(0).integers(4, 40, (2, 3, 7))

    def logits(params: nnx.State) -> jax.Array:
        made = nnx.merge(graphdef, params)
        return made.decode(made.encode(source_ids), decoder_ids)

    return jax.jit(logits)(params)


def test_updates_are_of_queries_and_values_and_change_nothing_at_the_start():
    params = ofa.create(LORA, VOCAB, jax.random.key(0))[1]
    flat = nnx.to_flat_state(params)
    assert {path[-3:] for path, _ in flat if NAME in path} == {(side, NAME, leaf) for side in ("query", "value") for leaf in ("down", "up")}
    assert sum(NAME in path for path, _ in flat) == 4 * 3  # encoder, decoder, decoder to encoder
    plain = nnx.from_flat_state([(path, leaf) for path, leaf in flat if NAME not in path])
    np.testing.assert_array_equal(outputs(LORA, params), outputs(PLAIN, plain))


def test_merged_they_are_the_same_model():
    params = ofa.create(LORA, VOCAB, jax.random.key(0))[1]

    def learned(path, leaf):
        return jax.random.normal(jax.random.key(leaf.size), leaf.shape) if NAME in jax.tree_util.keystr(path) else leaf

    params = jax.tree_util.tree_map_with_path(learned, params)
    expected, start = outputs(LORA, params), outputs(PLAIN, merged(params, dataclasses.replace(LORA, lora_alpha=1e-9))[0])
    whole, model = merged(params, LORA)
    assert model == PLAIN
    assert jax.tree.structure(whole) == jax.tree.structure(ofa.create(PLAIN, VOCAB, jax.random.key(0))[1])
    found = outputs(model, jax.tree.map(jnp.asarray, whole))
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
    assert float(jnp.abs(start - expected).max()) > 1e-2 * scale, "the updates count"
    assert merged(whole, model)[0] is whole, "a model without updates comes back as it is"
