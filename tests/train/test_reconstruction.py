"""Training of VQGANs: what the loss is made of, the adaptive weight, revival of codes, and a run that learns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ofa_jax.config.schema import (
    BlockConfig,
    DataConfig,
    OptimizerConfig,
    SourceConfig,
    VQGANConfig,
    VQGANLossConfig,
    VQGANRunConfig,
)
from ofa_jax.data.batch import Batch, Block
from ofa_jax.models.vqgan import to_pixels
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.objective import make_objective
from ofa_jax.train.perceptual import Edges, Lpips, load_perceptual
from ofa_jax.train.state import init_state
from ofa_jax.train.step import make_train_step, num_compilations, put_batch

MODEL = VQGANConfig(width=8, multiples=(1, 2), num_blocks=1, attention_levels=(), latent_width=8, num_codes=16, code_width=8, norm_groups=4)
RUN = VQGANRunConfig(
    name="test",
    model=MODEL,
    data=DataConfig(blocks=(BlockConfig("pictures", "pictures", 8, 0, 0, (SourceConfig("d", "picture"),), image_px=16),)),
    loss=VQGANLossConfig(discriminator_width=4, discriminator_layers=1, discriminator_start=2, temperature=(1.0, 0.5)),
    optimizer=OptimizerConfig(learning_rate=3e-3, end_learning_rate=3e-3, warmup_fraction=0.0, beta1=0.5, beta2=0.9, weight_decay=0.0),
    steps=40,
)
NEAREST = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, quantizer="nearest"))


def pictures(seed: int, rows: int = 8) -> np.ndarray:
    """Two flat colours a picture, left and right."""
    draw = np.random.default_rng(seed)
    colours = draw.choice([20, 90, 160, 230], (rows, 1, 2, 3)).astype(np.uint8)
    return np.repeat(np.repeat(colours, 8, 2), 16, 1)


def batch(step: int, rows: int = 8, draw=pictures) -> Batch:
    nothing = np.zeros((0, 0), np.int32)
    block = Block(
        draw(step, rows), np.ones(rows, bool), np.zeros(rows, bool), nothing, nothing, nothing, np.zeros(0, np.float32),
        np.zeros(0, bool), np.zeros(0, np.int32), np.arange(rows),
    )  # fmt: skip
    return Batch(step, {"pictures": block}, ())


def evaluate(config, step, key=0):
    """(loss, gradients, report) of the first parameters on one batch."""
    objective = make_objective(config)
    params, stats = objective.init(jax.random.key(1))
    blocks = {"pictures": batch(0).blocks["pictures"]._replace(elements=None)}

    def loss(params):
        return objective.loss(params, stats, blocks, jax.random.key(key), num_tasks=0, step=step)

    (value, report), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return float(value), grads, report, params, objective


def test_the_loss_is_the_sum_of_its_terms_before_the_discriminator_starts():
    value, grads, report, _, _ = evaluate(RUN, step=1)
    s = {name: float(x) for name, x in report.scalars.items()}
    expected = s["vqgan/pixel"] + s["vqgan/perceptual"] + RUN.loss.quantizer_weight * s["vqgan/quantizer"]
    assert value == pytest.approx(expected, rel=1e-5)
    assert s["vqgan/discriminator"] == s["vqgan/generator"] == s["vqgan/adaptive_weight"] == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads["discriminator"]))
    assert 0 < s["vqgan/codes_used"] <= 1 and 1 <= s["vqgan/perplexity"] <= 16
    # The divergence from equal probabilities lies between 0 and log n.
    assert 0 <= s["vqgan/quantizer"] <= np.log(16) + 1e-5


def test_both_sides_of_the_game_have_their_own_gradient_and_the_adaptive_weight_is_the_quotient_of_two():
    value, grads, report, params, objective = evaluate(RUN, step=2)
    s = {name: float(x) for name, x in report.scalars.items()}
    networks = nnx.merge(objective.graphdef, params)
    pixels = to_pixels(jnp.asarray(pictures(0)), accum=np.float32)
    # The same forward pass by hand: codes of the same noise.
    noise = jax.random.split(jax.random.key(0))[0]
    model = networks.vqgan
    quantised = objective._quantise(model, model.latents(pixels), noise, 2)
    features = model.decoder.last_features(model.post_quantizer(quantised.entries))

    def made(kernel):
        return (
            jax.lax.conv_general_dilated(features, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"))
            + model.decoder.conv_out.bias[...]
        )

    kernel = model.decoder.conv_out.kernel[...]
    unlike = jax.grad(lambda k: jnp.mean(jnp.abs(pixels - made(k))) + jnp.mean(Edges()(None, pixels, made(k))))(kernel)
    fool = jax.grad(lambda k: -jnp.mean(networks.discriminator(made(k))))(kernel)
    ratio = 0.8 * min(float(jnp.linalg.norm(unlike)) / (float(jnp.linalg.norm(fool)) + 1e-4), 1e4)
    assert s["vqgan/adaptive_weight"] == pytest.approx(ratio, rel=1e-3)

    def hinge_of(judge):
        return 0.5 * jnp.mean(jax.nn.relu(1 - judge(pixels))) + 0.5 * jnp.mean(jax.nn.relu(1 + judge(made(kernel))))

    hinge = float(hinge_of(networks.discriminator))
    assert s["vqgan/discriminator"] == pytest.approx(hinge, rel=1e-4)
    assert value == pytest.approx(
        s["vqgan/pixel"] + s["vqgan/perceptual"] + 5e-4 * s["vqgan/quantizer"] + hinge + ratio * s["vqgan/generator"], rel=1e-3
    )
    # The discriminator learns from its hinge alone, the last layer from the rest alone.
    graphdef, judge = nnx.split(networks.discriminator)
    alone = jax.grad(lambda d: hinge_of(nnx.merge(graphdef, d)))(judge)
    for found, expected in zip(jax.tree.leaves(grads["discriminator"]), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    last = grads["vqgan"]["decoder"]["conv_out"]["kernel"][...]
    np.testing.assert_allclose(last, unlike + s["vqgan/adaptive_weight"] * fool, atol=1e-5)


def test_the_gradient_of_the_nearest_quantiser_passes_through_and_pulls_both_ways():
    config = dataclasses.replace(NEAREST, loss=VQGANLossConfig(discriminator_weight=0.0, quantizer_weight=1.0))
    _, grads, report, params, objective = evaluate(config, step=0)
    model = nnx.merge(objective.graphdef, params).vqgan
    latents = model.latents(to_pixels(jnp.asarray(pictures(0)), accum=np.float32))
    entries = model.codebook[...][np.asarray(model.code_scores(latents)).argmax(-1)]
    distance = float(jnp.mean(jnp.square(latents - entries)))
    assert float(report.scalars["vqgan/quantizer"]) == pytest.approx(1.25 * distance, rel=1e-4)
    assert "discriminator" not in grads and np.any(grads["vqgan"]["encoder"]["conv_in"]["kernel"][...])
    used = np.unique(np.asarray(model.code_scores(latents)).argmax(-1))
    moved = np.any(np.asarray(grads["vqgan"]["codebook"][...]), axis=1)
    assert moved[used].any() and not moved[np.setdiff1d(np.arange(16), used)].any()


@pytest.mark.parametrize("config", [RUN, NEAREST], ids=["gumbel", "nearest"])
def test_dead_codes_are_born_again_when_it_is_time(config):
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, revive_every=5))
    objective = make_objective(config)
    params, stats = objective.init(jax.random.key(0))
    usage = np.array([3.0, 0.0] + [1.0] * 14, np.float32)
    stats = {**stats, "usage": jnp.asarray(usage)}
    if "candidates" in stats:
        stats["candidates"] = jnp.full((16, 8), 7.0)
    revise = jax.jit(objective.revise)
    same, kept = revise(params, stats, step=jnp.int32(3))
    assert jax.tree.all(jax.tree.map(np.array_equal, same, params)) and np.array_equal(kept["usage"], usage)
    late, _ = revise(params, stats, step=jnp.int32(34))  # updates 35 of 40: past three quarters of the run
    assert jax.tree.all(jax.tree.map(np.array_equal, late, params))
    new, reset = revise(params, stats, step=jnp.int32(4))
    assert not np.any(reset["usage"])
    old_book, book = (np.asarray(p["vqgan"]["codebook"][...]) for p in (params, new))
    changed = np.any(old_book != book, axis=1)
    assert changed.tolist() == [False, True] + [False] * 14
    if config is not RUN and config.model.quantizer == "nearest":
        assert (book[1] == 7).all()
    else:
        parent = np.flatnonzero((old_book == book[1]).all(1))
        assert len(parent) == 1 and usage[parent[0]] > 0, "a copy of a code that is used"
        old_kernel, kernel = (np.asarray(p["vqgan"]["scorer"]["kernel"][...])[0, 0] for p in (params, new))
        assert (kernel[:, 0] == old_kernel[:, 0]).all()
        assert 0 < np.abs(kernel[:, 1] - old_kernel[:, parent[0]]).max() < 0.1 * old_kernel.std()


def trained(config, *, steps, draw=pictures):
    """(state, scalars of every step) after a run on all devices, of new batches."""
    mesh = make_mesh(config.mesh)
    objective, state, step = make_objective(config), init_state(config, mesh), make_train_step(config, mesh, num_tasks=0)
    seen = []
    for number in range(steps):
        made = batch(number, draw=draw)
        objective.check_batch(made)
        state, metrics = step(state, put_batch(made, mesh))
        seen.append({name: float(value) for name, value in metrics.scalars.items()})
    assert num_compilations(step) == 1
    return state, seen


@pytest.mark.full
def test_eight_devices_play_both_sides_and_keep_an_average():
    loss = dataclasses.replace(RUN.loss, revive_every=2)
    state, seen = trained(dataclasses.replace(RUN, loss=loss, optimizer=dataclasses.replace(RUN.optimizer, ema_decay=0.9)), steps=4)
    assert [s["vqgan/discriminator"] > 0 for s in seen] == [s["vqgan/adaptive_weight"] > 0 for s in seen] == [False, False, True, True]
    assert set(state.params) == {"vqgan", "discriminator"} and state.ema is not None
    # 8 pictures of 8 x 8 cells a step, counted since the last revival, which was after the fourth update.
    assert float(jnp.sum(state.stats["usage"])) == 0


def fields(seed: int, rows: int = 8) -> np.ndarray:
    """Nine colours a picture, blended into each other."""
    corners, places = np.random.default_rng(seed).uniform(0, 255, (rows, 3, 3, 3)), np.linspace(0, 2, 16)
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(3)))
    return np.einsum("yi,xj,bijc->byxc", weights, weights, corners).round().astype(np.uint8)


@pytest.mark.full
def test_pictures_never_seen_before_come_back():
    loss = VQGANLossConfig(quantizer_weight=1.0, quantizer_start_fraction=0.2, revive_every=10, discriminator_weight=0.0)
    model = dataclasses.replace(NEAREST.model, norm_groups=1, norm_over="pixel")
    config = dataclasses.replace(NEAREST, model=model, loss=loss, steps=300)
    _, seen = trained(config, steps=300, draw=fields)
    grey = np.mean([10 * np.log10(255**2 / np.mean((fields(k) - 127.5) ** 2, (1, 2, 3))).mean() for k in range(20)])
    assert np.mean([s["vqgan/psnr"] for s in seen[:5]]) < grey + 1
    assert np.mean([s["vqgan/psnr"] for s in seen[-20:]]) > grey + 4
    assert np.mean([s["vqgan/codes_used"] for s in seen[-20:]]) > 0.9


def test_a_late_quantiser_lets_latents_pass_and_then_begins_with_them():
    loss = dataclasses.replace(NEAREST.loss, quantizer_start_fraction=3 / 40, quantizer_weight=1.0, discriminator_weight=0.0)
    config = dataclasses.replace(NEAREST, loss=loss)
    values = {}
    for step in (2, 3):
        value, grads, report, params, objective = evaluate(config, step=step)
        values[step] = value
        coded = float(jnp.sum(report.stats["usage"]))
        assert (coded, float(report.scalars["vqgan/quantizer"]) > 0) == ((0, False) if step == 2 else (8 * 64, True))
        assert np.any(grads["vqgan"]["codebook"][...]) == (step == 3)
    model = nnx.merge(objective.graphdef, params).vqgan
    pixels = to_pixels(jnp.asarray(pictures(0)), accum=np.float32)
    latents = model.latents(pixels)
    passed = model.decode_entries(latents)
    expected = jnp.mean(jnp.abs(pixels - passed)) + jnp.mean(Edges()(None, pixels, passed))
    assert values[2] == pytest.approx(float(expected), rel=1e-5)
    stats = {**report.stats, "usage": jnp.zeros(16), "candidates": jnp.full((16, 8), 7.0)}
    for step, born in ((1, False), (2, True), (3, False)):  # the third update is the last before the start
        revised, _ = objective.revise(params, stats, step=jnp.int32(step))
        assert bool((revised["vqgan"]["codebook"][...] == 7).all()) == born


def test_the_temperature_falls_along_half_a_cosine():
    found = [float(make_objective(RUN).temperature(step)) for step in (0, 15, 30, 40)]
    np.testing.assert_allclose(found, [1.0, 0.75, 0.5, 0.5], atol=1e-6)


def vgg_state(seed: int = 0) -> dict[str, np.ndarray]:
    draw, channels, state = np.random.default_rng(seed), 3, {}
    groups = {0: (64, 0), 2: (64, 0), 5: (128, 1), 7: (128, 1), 10: (256, 2), 12: (256, 2), 14: (256, 2)}
    groups |= {17: (512, 3), 19: (512, 3), 21: (512, 3), 24: (512, 4), 26: (512, 4), 28: (512, 4)}
    for layer, (out, group) in groups.items():
        state[f"features.{layer}.weight"] = draw.normal(0, (2 / 9 / channels) ** 0.5, (out, channels, 3, 3)).astype(np.float32)
        state[f"features.{layer}.bias"] = draw.normal(0, 0.1, out).astype(np.float32)
        state[f"lin{group}.model.1.weight"] = draw.uniform(0, 1, (1, out, 1, 1)).astype(np.float32)
        channels = out
    return state


def test_perceptual_losses_are_zero_for_equal_pictures_and_grow_with_blur(tmp_path):
    np.savez(tmp_path / "lpips.npz", **vgg_state())
    draw = np.random.default_rng(0)
    a = jnp.asarray(draw.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    blurred = (a + jnp.roll(a, 1, 1) + jnp.roll(a, 1, 2)) / 3
    for loss in (load_perceptual(""), load_perceptual(str(tmp_path / "lpips.npz"))):
        run = jax.jit(loss.__call__)
        same, little, much = (np.asarray(run(loss.weights(), a, b)) for b in (a, 0.9 * a + 0.1 * blurred, blurred))
        assert same.shape == (2,) and (same == 0).all()
        assert (little > 0).all() and (little < much).all()


def test_missing_weights_of_lpips_are_named():
    state = vgg_state()
    with pytest.raises(ValueError, match=r"x: lin2.model.1.weight: found nothing, expected shape \(1, 256, 1, 1\)"):
        Lpips({name: array for name, array in state.items() if name != "lin2.model.1.weight"}, where="x")
    with pytest.raises(ValueError, match=r"loss.perceptual: found no file nowhere.npz"):
        load_perceptual("nowhere.npz")
