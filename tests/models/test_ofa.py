"""The whole model: parameter counts, streams, masks, sampling, precision."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.schema import ResNetConfig, VocabConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.models import ofa

# One layer a stack keeps compilation short; what depends on the number of layers has its own test.
SMALL = dataclasses.replace(
    SIZES["nano"], width=16, ffn_width=24, num_heads=2, encoder_layers=1, decoder_layers=1,
    resnet=ResNetConfig(blocks=(1, 1, 1), base_width=2, stem_pool=False),
    image_bucket_size=8, code_filler_id=64, code_image_px=16, init_std=0.2,
)  # fmt: skip
VOCAB = VocabConfig(num_text=40, num_codes=16, num_bins=8, pad_multiple=32)
OFA_COUNTS = {"tiny": 33_488_336, "medium": 92_892_000, "base": 182_238_536, "large": 472_977_152, "huge": 929_486_848}


@functools.cache
def build(config=SMALL, precision="f32"):
    graphdef, params = ofa.create(config, VOCAB, jax.random.key(0), precision=precision)
    return Jitted(graphdef, params)


@dataclasses.dataclass(frozen=True)
class Jitted:
    """The model's methods, each compiled once per signature."""

    graphdef: nnx.GraphDef
    params: nnx.State

    def __getattr__(self, name):
        return functools.partial(_call, self.graphdef, name, self.params)


@functools.partial(jax.jit, static_argnames=("graphdef", "name", "train", "code_rows"))
def _call(graphdef, name, params, *args, **kwargs):
    return getattr(nnx.merge(graphdef, params), name)(*args, **kwargs)


def inputs(rows=2, per_row=2, source=7, target=6, seed=0):
    draw = np.random.default_rng(seed)
    num = rows * per_row
    source_ids = draw.integers(4, 60, (num, source)).astype(np.int32)
    decoder_ids = draw.integers(4, 60, (num, target)).astype(np.int32)
    source_ids[:, 0] = decoder_ids[:, 0] = 0
    source_ids[1, 4:], decoder_ids[0, 3:] = 1, 1
    return draw.integers(0, 256, (rows, 32, 32, 3)).astype(np.uint8), source_ids, decoder_ids


def close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", OFA_COUNTS)
def test_parameter_counts(size):
    vocab = VocabConfig()
    params = jax.eval_shape(lambda key: ofa.create(SIZES[size], vocab, key)[1], jax.random.key(0))
    assert params["embedding"]["table"].shape[0] % 128 == 0
    assert ofa.num_params(params, vocab) == OFA_COUNTS[size]
    of = {name: sum(x.size for x in jax.tree.leaves(params[name])) for name in ("resnet", "decoder")}
    assert of["resnet"] == {"tiny": 8_543_296, "medium": 27_535_424, "base": 27_535_424}.get(size, 43_179_072)
    if size == "large":
        assert of["decoder"] == 210_195_904
        tables = [params[s]["layers"][t].size for s in ("encoder", "decoder") for t in ("token_relative", "image_relative")]
        assert sum(tables) == 2_842_752


def test_every_parameter_names_its_axes():
    allowed = {"layers", "vocab", "width", "ffn", "heads", "positions", "buckets", "channels_in", "channels_out", "norm", None}
    for path, param in nnx.to_flat_state(build().params):
        assert len(param.axes) == param.ndim and set(param.axes) <= allowed, path


def test_initial_values():
    _, params = ofa.create(SIZES["nano"], VOCAB, jax.random.key(0))
    layers = params["encoder"]["layers"]
    for table in (layers["token_relative"], layers["self_attention"]["query"]["kernel"], params["embedding"]["table"]):
        assert abs(float(table[...].std()) - 0.02) < 0.002
    assert (layers["self_attention"]["head_scale"][...] == 1).all() and (layers["self_attention"]["query"]["bias"][...] == 0).all()
    assert not np.array_equal(layers["self_attention"]["query"]["kernel"][0], layers["self_attention"]["query"]["kernel"][1])


def test_features_are_repeated_for_the_sequences_of_a_row():
    model, stats = build(), ofa.init_stats(SMALL)
    images, source_ids, _ = inputs(rows=2, per_row=3)
    features, _ = model.embed_images(images, None, stats=stats, train=False)
    assert features.shape == (2, 16, 32)
    once = model.encode(source_ids, features, image_mask=np.array([True, False]))
    repeated = model.encode(source_ids, jnp.repeat(features, 3, 0), image_mask=np.repeat([True, False], 3))
    close(once.states, repeated.states)
    assert once.mask.tolist() == repeated.mask.tolist() and once.mask[3:, :16].sum() == 0
    with pytest.raises(ValueError, match="found 6 sequences for 4 images"):
        model.encode(source_ids, jnp.zeros((4, 16, 32)))


def test_hole_changes_only_its_row():
    model, stats = build(), ofa.init_stats(SMALL)
    images, *_ = inputs()
    plain, _ = model.embed_images(images, None, stats=stats, train=False)
    holed, _ = model.embed_images(images, np.array([False, True]), stats=stats, train=False)
    close(plain[0], holed[0])
    assert np.abs(plain[1] - holed[1]).max() > 1e-3


def test_text_only_block_equals_a_hidden_picture():
    model = build()
    _, source_ids, decoder_ids = inputs()
    features = jax.random.normal(jax.random.key(1), (2, 16, 32))
    text = model.encode(source_ids)
    hidden = model.encode(source_ids, features, image_mask=np.zeros(2, bool))
    assert text.states.shape == (4, 7, 16)
    keep = source_ids != 1
    close(np.asarray(text.states)[keep], np.asarray(hidden.states[:, 16:])[keep])
    close(model.decode(text, decoder_ids), model.decode(hidden, decoder_ids))


def test_sampled_patches():
    model = build()
    _, source_ids, decoder_ids = inputs()
    features = jax.random.normal(jax.random.key(1), (2, 16, 32))
    everything = model.encode(source_ids, features)
    order = np.stack([np.random.default_rng(i).permutation(16) for i in range(4)])
    shuffled = model.encode(source_ids, features, patch_ids=order)
    close(shuffled.states[:, 16:], everything.states[:, 16:])
    close(shuffled.states[:, :16], np.take_along_axis(np.asarray(everything.states), order[..., None], 1))
    code_mask = np.array([True, False, True, False])
    close(model.decode(shuffled, decoder_ids, code_mask), model.decode(everything, decoder_ids, code_mask))
    some = model.encode(source_ids, features, patch_ids=order[:, :5])
    assert some.states.shape == (4, 12, 16) and some.positions.shape == (4, 12, 16)
    # A sequence sees its own patches only: change a patch that row 0 dropped, and one it keeps.
    for place, same in ((order[0, 5], True), (order[0, 0], False)):
        changed = model.encode(source_ids, features.at[0, place].add(1.0), patch_ids=order[:, :5])
        assert np.allclose(changed.states[0], some.states[0], atol=1e-5) == same


def test_padding_does_not_reach_real_tokens():
    model = build()
    _, source_ids, decoder_ids = inputs()
    longer = np.concatenate([source_ids, np.ones((4, 3), np.int32)], 1)
    features = jax.random.normal(jax.random.key(1), (4, 16, 32))
    a, b = model.encode(source_ids, features), model.encode(longer, features)
    keep = np.asarray(a.mask)
    close(np.asarray(a.states)[keep], np.asarray(b.states[:, :23])[keep])
    longer_ids = np.concatenate([decoder_ids, np.ones((4, 2), np.int32)], 1)
    close(model.decode(a, decoder_ids), model.decode(b, longer_ids)[:, :6])


def test_a_row_of_padding_stays_finite():
    model = build()
    _, source_ids, decoder_ids = inputs()
    source_ids[3], decoder_ids[3] = 1, 1

    def loss(params):
        merged = nnx.merge(model.graphdef, params)
        return jnp.square(merged.logits(merged.decode(merged.encode(source_ids), decoder_ids))[..., : VOCAB.size]).sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(model.params)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.full
@pytest.mark.parametrize("change", [{"layers": "scan", "remat": "dots"}, {"remat": "full"}])
def test_layer_modes_agree_with_dropout_on(change):
    """A rematerialised or scanned layer must draw the same dropout as a plain one."""
    found, expected = layer_mode_outcome(**change), layer_mode_outcome()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, expected)


@functools.cache
def layer_mode_outcome(**change):
    config = dataclasses.replace(SMALL, encoder_layers=2, dropout=0.2, encoder_drop_path_rate=0.3, **change)
    _, source_ids, _ = inputs()
    graphdef, params = ofa.create(config, VOCAB, jax.random.key(0))

    def loss(params):
        return jnp.square(nnx.merge(graphdef, params).encode(source_ids, key=jax.random.key(2)).states - 0.1).mean()

    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params))


def test_keys_decide_about_dropout():
    model = build(dataclasses.replace(SMALL, dropout=0.3))
    _, source_ids, _ = inputs()
    first, again, other = (model.encode(source_ids, key=jax.random.key(i)).states for i in (1, 1, 2))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert np.array_equal(model.encode(source_ids).states, model.encode(source_ids).states)


@pytest.mark.full
def test_bf16_is_near_f32():
    images, source_ids, decoder_ids = inputs()
    out = []
    for precision in ("f32", "bf16"):
        model, stats = build(precision=precision), ofa.init_stats(SMALL)

        def loss(params, graphdef=model.graphdef, stats=stats):
            merged = nnx.merge(graphdef, params)
            features, new = merged.embed_images(images, None, stats=stats, train=True)
            logits = merged.logits(merged.decode(merged.encode(source_ids, features), decoder_ids))[..., : VOCAB.size]
            return -jax.nn.log_softmax(logits)[..., 5].mean(), (features, new, logits)

        (_, (features, new, logits)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params)
        assert logits.dtype == jnp.float32 and new["stem"]["mean"].dtype == jnp.float32
        assert features.dtype == (jnp.float32 if precision == "f32" else jnp.bfloat16)
        flat = np.concatenate([np.asarray(g).ravel() for g in jax.tree.leaves(grads)])
        assert flat.dtype == np.float32
        out.append((np.asarray(logits), flat))
    assert np.abs(out[0][0] - out[1][0]).max() < 0.1 * np.abs(out[0][0]).max()
    assert np.linalg.norm(out[0][1] - out[1][1]) < 0.15 * np.linalg.norm(out[0][1])


def test_long_codes_never_touch_the_text_tables():
    config = dataclasses.replace(SMALL, max_positions=8)
    model = build(config)
    _, source_ids, _ = inputs()
    decoder_ids = np.full((4, 17), 45, np.int32)
    assert model.decode(model.encode(source_ids), decoder_ids, code_rows="all").shape == (4, 17, 16)
    with pytest.raises(ValueError, match="expected at most"):
        model.decode(model.encode(source_ids), decoder_ids, np.ones(4, bool))


def test_interpolated_positions():
    config = dataclasses.replace(SMALL, interpolate_position=True, orig_patch_image_px=16)
    model = build(config)
    positions = nnx.merge(model.graphdef, model.params).encoder.positions
    small = positions.image.table[1:].reshape(8, 8, -1)[:2, :2]
    expected = jax.image.resize(small, (4, 4, 16), "linear", antialias=False).reshape(16, 16)
    close(positions.grid_positions(4, 4), positions.image_norm(expected))
    close(positions.grid_positions(2, 2), positions.image_norm(small.reshape(4, 16)))
    with pytest.raises(ValueError, match="interpolate_position"):
        model.encode(np.zeros((1, 2), np.int32), jnp.zeros((1, 16, 32)), patch_ids=np.zeros((1, 3), np.int32))


def test_wrong_configs_fail_with_a_sentence():
    with pytest.raises(ValueError, match="model.num_heads: found 3 heads for width 16"):
        build(dataclasses.replace(SMALL, num_heads=3))
    with pytest.raises(ValueError, match="model.code_filler_id: found 65"):
        build(dataclasses.replace(SMALL, code_filler_id=65))
    with pytest.raises(ValueError, match="15 patches without a grid"):
        build().encode(np.zeros((1, 2), np.int32), jnp.zeros((1, 15, 32)))


@pytest.mark.full
def test_prompts_and_adapters_in_training():
    """Prompt entries are dropped once a sequence, in training only; adapters and prompts get gradients."""
    config = dataclasses.replace(
        SMALL, dropout=0.0, encoder_drop_path_rate=0.0, decoder_drop_path_rate=0.0, adapter_width=3, prompt_lens=(2, 3)
    )
    _, ids, decoder_ids = inputs(source=7)
    ids[:], decoder_ids[:] = ids[:1], decoder_ids[1:2]

    def hidden(config, key):
        model = build(config)
        return np.asarray(model.decode(model.encode(ids, key=key), decoder_ids, key=key))

    steady = dataclasses.replace(config, prompt_dropout=0.0)
    close(hidden(steady, jax.random.key(1)), hidden(config, None))
    dropped = hidden(config, jax.random.key(1))
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-3  # equal sequences, other draws

    graphdef, params = ofa.create(config, VOCAB, jax.random.key(0))

    def total(params):
        model = nnx.merge(graphdef, params)
        return jnp.sum(model.decode(model.encode(ids), decoder_ids)[..., 0])

    grads = jax.jit(jax.grad(total))(params)
    for stack in ("encoder", "decoder"):
        for leaf in (grads[stack]["prompt"]["embedding"]["table"], grads[stack]["layers"]["adapter"]["down"]["kernel"]):
            assert np.abs(np.asarray(leaf[...])).max() > 0
