"""Weights in and out: bit for bit, everything that does not fit listed in one error, buffers as the official modules have them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ofa_jax.config.errors import ConvertError
from ofa_jax.convert.names import EMBEDDING, TIED
from ofa_jax.convert.weights import Weights, buffers, fill, from_state, grown, to_fairseq_names, to_state
from ofa_jax.models import ofa


@pytest.fixture(scope="module")
def state(small, golden):
    """A whole state dict in float32, as a released file has it."""
    floats = {name: array.astype(np.float32) for name, array in golden.state(small).items()}
    return to_state(from_state(floats, small, golden.VOCAB, where="field"), small, golden.VOCAB)


def assert_same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("style", ["fairseq", "hf"])
def test_out_and_in_again_is_the_identity(model, golden, style):
    floats = {name: array.astype(np.float32) for name, array in golden.state(model).items()}
    weights = from_state(floats, model, golden.VOCAB, where="field")
    once = to_state(weights, model, golden.VOCAB, style=style)
    again = to_state(from_state(once, model, golden.VOCAB, where="once"), model, golden.VOCAB, style=style)
    assert_same(once, again)
    plain = to_fairseq_names(once)
    for name, array in floats.items():
        assert plain[name].tobytes() == array.tobytes(), name


def test_rows_that_pad_the_vocabulary_are_ours_alone(state, small, golden):
    weights = from_state(state, small, golden.VOCAB, where="here")
    table = weights.params["embedding"]["table"].get_value()
    assert table.shape[0] == golden.VOCAB.padded_size and not table[golden.VOCAB.size :].any()
    assert state[EMBEDDING].shape[0] == golden.VOCAB.size


def test_every_fault_is_listed(state, small, golden):
    broken = dict(state)
    del broken["encoder.layers.1.fc1.weight"], broken["decoder.layer_norm.bias"]
    broken["encoder.layers.7.fc1.bias"] = np.zeros(64, np.float32)
    broken["decoder.pos_ln.weight"] = np.zeros(31, np.float32)
    broken["encoder.pos_ln.bias"] = np.arange(32)
    broken["encoder.layer_norm.weight"] = np.full(32, np.nan, np.float32)
    broken[TIED[2]] = broken[TIED[2]] + np.float32(1e-6)
    broken["decoder.token_rp_bucket"] = state["decoder.token_rp_bucket"].T
    with pytest.raises(ConvertError) as caught:
        from_state(broken, small, golden.VOCAB, where="x.pt")
    text = str(caught.value)
    assert text.startswith("x.pt: found 8 fault(s)")
    for line in (
        "missing: encoder.layers.1.fc1.weight (64, 32)",
        "missing: decoder.layer_norm.bias (32,)",
        "not expected: encoder.layers.7.fc1.bias (64,)",
        "other shape: decoder.pos_ln.weight found (31,), expected (32,)",
        "other dtype: encoder.pos_ln.bias found int64, expected a float",
        "not finite: encoder.layer_norm.weight has 32 NaN or infinite values",
        "not tied: decoder.output_projection.weight differs from encoder.embed_tokens.weight",
        "other buffer: decoder.token_rp_bucket (1024, 1024)",
    ):
        assert line in text, line


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_floats_are_read_as_float32(state, small, golden, kind):
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    other = {name: array.astype(dtype) if array.dtype == np.float32 else array for name, array in state.items()}
    weights = from_state(other, small, golden.VOCAB, where="here")
    found = weights.params["encoder"]["norm"]["scale"].get_value()
    np.testing.assert_array_equal(found, state["encoder.layer_norm.weight"].astype(dtype).astype(np.float32))


def test_names_of_older_fairseq(state, small, golden):
    old = dict(state)
    for name in [name for name in state if ".self_attn.q_proj." in name]:
        stem, leaf = name.split("q_proj.")
        old[f"{stem}in_proj_{leaf}"] = np.concatenate([old.pop(f"{stem}{part}_proj.{leaf}") for part in "qkv"])
    for name in [name for name in state if ".encoder_attn_layer_norm." in name]:
        old[name.replace("encoder_attn_layer_norm", "layer_norms.1")] = old.pop(name)
    weights = from_state(old, small, golden.VOCAB, where="old")
    assert_same(to_state(weights, small, golden.VOCAB), state)


def test_buffers_of_the_official_modules(golden):
    found = buffers(golden.MODEL)
    one = found["encoder.token_rp_bucket"]
    # model.md 4.3: distances 129, 131, 200, 512, 1000, 1023 and the buckets around 255
    assert [int(one[d, 0]) - 255 for d in (0, 128, 129, 131, 200, 512, 1000, 1023)] == [0, 128, 129, 130, 156, 213, 254, 255]
    two = found["decoder.image_rp_bucket"]
    assert two.shape == (1765, 1765) and two[0, 0] == 6891 and two[0, 5] == 6889 and two[5, 0] == 6890 and two[1:, 1:].max() == 6888
    places = found["decoder.image_position_idx"]
    assert len(places) == 1026 and places[:3].tolist() == [0, 1, 2] and places[17] == 43 and (places[257:] == 1024).all()
    assert len(buffers(golden.MODEL, style="hf")["decoder.image_position_idx"]) == 1025
    wide = dataclasses.replace(golden.MODEL, code_image_px=256)
    assert len(buffers(wide)["decoder.image_position_idx"]) == 1794


def test_filling_a_part_leaves_the_rest_as_drawn(small, golden):
    params = ofa.create(small, golden.VOCAB, jax.random.key(3))[1]
    drawn = Weights(jax.tree.map(np.asarray, params), ofa.init_stats(small))
    found = {"encoder.layers.2.fc1.weight": np.ones((64, 32), np.float32), EMBEDDING: np.full((100, 32), 2, np.float32)}
    weights, filled, left = fill(drawn, found, small, golden.VOCAB, where="part")
    assert sorted(filled) == sorted(found) and len(left) + 2 == len(golden.state(small))
    kernel = weights.params["encoder"]["layers"]["ffn"]["expand"]["kernel"].get_value()
    before = drawn.params["encoder"]["layers"]["ffn"]["expand"]["kernel"].get_value()
    assert (kernel[2] == 1).all() and np.array_equal(kernel[:2], before[:2])
    table = weights.params["embedding"]["table"].get_value()
    assert (table[:100] == 2).all() and np.array_equal(table[100:], drawn.params["embedding"]["table"].get_value()[100:])
    with pytest.raises(ConvertError, match="not expected: encoder.layers.9.fc1.weight"):
        fill(drawn, {"encoder.layers.9.fc1.weight": np.ones((64, 32), np.float32)}, small, golden.VOCAB, where="part")


def test_tables_grow_as_the_official_loader_grows_them(small, golden, state):
    """Rows are drawn at the end with deviation D^-0.5, tied copies stay tied, what is longer stays and is refused."""
    larger = dataclasses.replace(golden.VOCAB, num_bins=golden.VOCAB.num_bins + 700)
    wider = dataclasses.replace(small, image_bucket_size=43)
    grown_state, said = grown(state, small, larger, seed=0)
    assert said == [f"{EMBEDDING}: 700 rows drawn behind its 320"]
    table = grown_state[EMBEDDING]
    assert all(grown_state[name] is table for name in TIED) and np.array_equal(table[:320], state[EMBEDDING])
    assert table[320:].std() == pytest.approx(small.width**-0.5, rel=0.02)
    from_state(grown_state, small, larger, where="grown")
    assert np.array_equal(grown(state, small, larger, seed=0)[0][EMBEDDING], table)
    assert len(grown(state, wider, golden.VOCAB, seed=0)[1]) == 2  # image positions of both stacks
    smaller = dataclasses.replace(golden.VOCAB, num_bins=golden.VOCAB.num_bins - 1)
    assert grown(state, small, smaller, seed=0)[0][EMBEDDING].shape[0] == 319
    assert grown(state, small, golden.VOCAB, seed=0)[1] == []
    much_smaller = dataclasses.replace(golden.VOCAB, num_text=golden.VOCAB.num_text - 2)
    with pytest.raises(ConvertError, match="other shape: encoder.embed_tokens.weight found .320, 32., expected .318, 32."):
        from_state(grown(state, small, much_smaller, seed=0)[0], small, much_smaller, where="x")
