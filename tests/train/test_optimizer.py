"""The optimizer against NumPy written from fairseq's formulas, the schedule, clipping and the average of the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ofa_jax.config.errors import UserError
from ofa_jax.config.parameters import is_named, part_stays, stays
from ofa_jax.config.schema import OptimizerConfig
from ofa_jax.train.optimizer import (
    average,
    check_named,
    clip_by_global_norm,
    learning_rate,
    make_optimizer,
    norms_by_part,
    stop_frozen,
)

CONFIG = OptimizerConfig(learning_rate=1e-2, end_learning_rate=1e-3, warmup_fraction=0.25, weight_decay=0.1, clip_norm=1.0, eps=1e-3)
STEPS = 12


def reference_rate(n, *, lr, end, warmup, steps):
    if warmup and n <= warmup:
        return lr * n / warmup
    if n >= steps:
        return end
    return (lr - end) * (1 - (n - warmup) / (steps - warmup)) + end


def reference_steps(params, grads_of_step, config):
    """fairseq's Adam: eps after the square root of the raw second moment, decay times the rate, one clipping for all tensors."""
    params = {k: v.astype(np.float64) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v2 = {k: np.zeros_like(v) for k, v in params.items()}
    for n, grads in enumerate(grads_of_step):
        lr = reference_rate(n, lr=config.learning_rate, end=config.end_learning_rate, warmup=3, steps=STEPS)
        norm = np.sqrt(sum(np.sum(np.square(g.astype(np.float64))) for g in grads.values()))
        scale = min(1.0, config.clip_norm / (norm + 1e-6))
        t = n + 1
        for k in params:
            g = grads[k].astype(np.float64) * scale
            m[k] = config.beta1 * m[k] + (1 - config.beta1) * g
            v2[k] = config.beta2 * v2[k] + (1 - config.beta2) * g * g
            size = lr * np.sqrt(1 - config.beta2**t) / (1 - config.beta1**t)
            params[k] = params[k] - lr * config.weight_decay * params[k] - size * m[k] / (np.sqrt(v2[k]) + config.eps)
    return params


def run(tx, params, grads_of_step):
    state = tx.init(params)
    for grads in grads_of_step:
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def example():
    draw = np.random.default_rng(0)
    params = {"kernel": draw.normal(size=(4, 3)).astype(np.float32), "bias": draw.normal(size=3).astype(np.float32)}
    # Steps 0 and 1 are clipped, later ones are tiny, so that the place of eps matters.
    scales = [5.0, 2.0] + [1e-3] * 8
    return params, [{k: (s * draw.normal(size=v.shape)).astype(np.float32) for k, v in params.items()} for s in scales]


def test_ten_steps_are_fairseqs():
    params, grads = example()
    found = run(make_optimizer(CONFIG, steps=STEPS), params, grads)
    for name, expected in reference_steps(params, grads, CONFIG).items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-6, atol=1e-7)


def test_what_is_frozen_neither_moves_nor_decays():
    """A part by its name, and of the image front the batch norms alone; everything else decays, without a gradient too."""
    ones = {"norm1": {"scale": np.ones(3, np.float32)}, "kernel1": np.ones(3, np.float32)}
    params = {
        "resnet": {"stage1_first": ones},
        "encoder": {"norm": {"scale": np.ones(3, np.float32)}},
        "decoder": {"bias": np.ones(3, np.float32)},
    }
    grads = [jax.tree.map(np.zeros_like, params)] * 2

    def moved(config, **options) -> set[str]:
        after = run(make_optimizer(config, steps=STEPS, **options), params, grads)
        flat = jax.tree_util.tree_flatten_with_path(after)[0]
        return {"/".join(key.key for key in path) for path, leaf in flat if np.any(np.asarray(leaf) != 1)}

    norm, kernel = "resnet/stage1_first/norm1/scale", "resnet/stage1_first/kernel1"
    rest = {"encoder/norm/scale", "decoder/bias"}
    assert moved(CONFIG) == {norm, kernel} | rest
    assert moved(CONFIG, frozen_norms=True) == {kernel} | rest
    assert moved(dataclasses.replace(CONFIG, frozen=("resnet", "decoder"))) == {"encoder/norm/scale"}


LAYERS = {"layers": {"self_attention": {"key": np.ones(2)}, "ffn": {"norm": np.ones(2)}}, "norm": np.ones(2)}


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("encoder", {"encoder/layers/self_attention/key", "encoder/layers/ffn/norm", "encoder/norm"}),
        ("encoder/layers/ffn", {"encoder/layers/ffn/norm"}),
        ("*/layers/*attention", {"encoder/layers/self_attention/key", "decoder/layers/self_attention/key"}),
        ("**/norm", {"encoder/layers/ffn/norm", "encoder/norm", "decoder/layers/ffn/norm", "decoder/norm"}),
        ("*/norm", {"encoder/norm", "decoder/norm"}),
        ("**/key", {"encoder/layers/self_attention/key", "decoder/layers/self_attention/key"}),
        ("*/layers/[fg]fn/nor?", {"encoder/layers/ffn/norm", "decoder/layers/ffn/norm"}),
    ],
)
def test_an_entry_names_what_lies_below_it(entry, names):
    params = {"encoder": LAYERS, "decoder": LAYERS}
    paths = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    assert {path for path in paths if is_named(path.split("/"), (entry,))} == names
    check_named(params, dataclasses.replace(CONFIG, trained=(entry,)))


def test_an_entry_that_names_nothing_is_told():
    params = {"encoder": LAYERS, "decoder": LAYERS}
    with pytest.raises(
        UserError, match=r"frozen: found encoder/layers/atention, which names no .* did you mean encoder/layers/self_attention"
    ):
        check_named(params, dataclasses.replace(CONFIG, frozen=("decoder", "encoder/layers/atention")))
    with pytest.raises(UserError, match=r"found \*/xyz, which names no parameter of the model; its parts are decoder, encoder"):
        check_named(params, dataclasses.replace(CONFIG, trained=("*/xyz",)))
    with pytest.raises(UserError, match=r"trained: found encoder/norm, all of it in optimizer.frozen"):
        check_named(params, dataclasses.replace(CONFIG, frozen=("encoder",), trained=("encoder/norm",)))


def test_what_is_named_as_trained_learns_alone():
    def learn(**names: tuple[str, ...]) -> set[str]:
        config = dataclasses.replace(CONFIG, **names)
        paths = ("encoder/layers/ffn/norm/bias", "encoder/layers/ffn/expand/bias", "encoder/layers/ffn/expand/kernel", "resnet/norm/bias")
        return {path for path in paths if not stays(path.split("/"), config)}

    assert len(learn()) == 4
    assert learn(trained=("**/*norm/bias", "**/ffn/*/bias"), frozen=("resnet",)) == {
        "encoder/layers/ffn/norm/bias", "encoder/layers/ffn/expand/bias",
    }  # fmt: skip
    assert learn(trained=("resnet",)) == {"resnet/norm/bias"}
    for trained, whole in (((), False), (("**/bias",), False), (("encoder",), True), (("*/layers",), False), (("resnet/stem",), False)):
        assert part_stays("resnet", dataclasses.replace(CONFIG, trained=trained)) == whole


def test_no_moments_are_kept_of_what_is_frozen():
    params = {"encoder": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "decoder": {"kernel": jnp.ones(3)}}
    grads = [jax.tree.map(lambda x: 0.5 * x, params), jax.tree.map(lambda x: -0.1 * x, params)]
    for leaf in ("kernel", "bias"):
        grads[0]["encoder"][leaf] = grads[1]["encoder"][leaf] = jnp.zeros(3)
    frozen = dataclasses.replace(CONFIG, frozen=("encoder/kernel", "**/bias"))
    state = make_optimizer(frozen, steps=STEPS).init(params)
    assert len(jax.tree.leaves(state[1])) == 3  # the count and the decoder's two
    found = run(make_optimizer(frozen, steps=STEPS), params, grads)
    jax.tree.map(np.testing.assert_array_equal, found["encoder"], params["encoder"])
    np.testing.assert_array_equal(found["decoder"]["kernel"], run(make_optimizer(CONFIG, steps=STEPS), params, grads)["decoder"]["kernel"])


def test_no_gradient_reaches_a_frozen_part():
    params = {"resnet": {"kernel": jnp.arange(3.0)}, "encoder": {"kernel": jnp.arange(3.0)}}

    def loss(params):
        kept = stop_frozen(params, dataclasses.replace(CONFIG, frozen=("resnet",)))
        return jnp.sum(kept["resnet"]["kernel"] * kept["encoder"]["kernel"])

    grads = jax.grad(loss)(params)
    assert not np.any(grads["resnet"]["kernel"]) and np.any(grads["encoder"]["kernel"])


def test_optax_own_adam_is_another_optimizer():
    """Why the transformation is written by hand: optax puts eps after the bias correction."""
    params, grads = example()
    tx = optax.chain(
        clip_by_global_norm(CONFIG.clip_norm), optax.scale_by_adam(b1=CONFIG.beta1, b2=CONFIG.beta2, eps=CONFIG.eps),
        optax.add_decayed_weights(CONFIG.weight_decay), optax.scale_by_learning_rate(learning_rate(CONFIG, steps=STEPS)),
    )  # fmt: skip
    difference = np.max(np.abs(np.asarray(run(tx, params, grads)["kernel"]) - reference_steps(params, grads, CONFIG)["kernel"]))
    assert difference > 1e-3


@pytest.mark.parametrize(("warmup_fraction", "warmup"), [(0.01, 1), (0.1, 10), (0.999, 99), (0.0, 0)])
def test_the_schedule_is_the_formula(warmup_fraction, warmup):
    config = OptimizerConfig(learning_rate=2e-4, end_learning_rate=1e-5, warmup_fraction=warmup_fraction)
    schedule = learning_rate(config, steps=100)
    for n in [0, 1, 2, 9, 10, 11, 50, 98, 99, 100, 101, 1000]:
        np.testing.assert_allclose(
            schedule(jnp.int32(n)), reference_rate(n, lr=2e-4, end=1e-5, warmup=warmup, steps=100), rtol=1e-5, atol=1e-11
        )


def test_clipping_is_by_the_norm_of_all_and_zero_means_none():
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}

    def clip(norm):
        tx = clip_by_global_norm(norm)
        return jax.tree.map(float, jax.tree.map(lambda x: x[0], tx.update(grads, tx.init(grads))[0]))

    assert clip(1.0)["a"] == pytest.approx(3.0 / (5.0 + 1e-6), rel=1e-6)
    assert clip(10.0) == {"a": 3.0, "b": 4.0}
    assert clip(0.0) == {"a": 3.0, "b": 4.0}


def test_norms_by_part_are_those_of_the_top_level_modules():
    grads = {"encoder": {"a": jnp.array([3.0]), "b": {"c": jnp.array([[4.0]])}}, "resnet": {"d": jnp.zeros(2)}, "decoder": jnp.ones(4)}
    parts = norms_by_part(grads)
    assert {name: float(norm) for name, norm in parts.items()} == {"encoder": 5.0, "resnet": 0.0, "decoder": 2.0}
    np.testing.assert_allclose(float(optax.tree.norm(grads)) ** 2, sum(float(norm) ** 2 for norm in parts.values()), rtol=1e-6)


def test_the_average_forgets_the_start():
    config = OptimizerConfig(ema_decay=0.9, frozen=("still",))
    ema = {"w": jnp.array([100.0])}
    for n in range(50):
        ema = average(ema, {"w": jnp.array([1.0])}, config=config, count=jnp.int32(n))
    assert float(ema["w"][0]) == pytest.approx(1.0, abs=1e-2)
    once = average({"w": jnp.array([2.0])}, {"w": jnp.array([4.0])}, config=config, count=jnp.int32(10**6))
    assert float(once["w"][0]) == pytest.approx(0.9 * 2 + 0.1 * 4)
    still = {"still": jnp.linspace(0.1, 0.9, 100)}
    assert np.array_equal(average(still, still, config=config, count=jnp.int32(3))["still"], still["still"]), "no rounding"
