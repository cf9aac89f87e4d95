"""Every option of the loss against plain NumPy in float64, written from the equations, and gradients against its central differences."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import EOS_ID, PAD_ID, LossConfig, MeshConfig
from ofa_jax.parallel.mesh import batch_sharding, make_mesh
from ofa_jax.train.loss import block_loss, group_sums
from ofa_jax.train.token_loss import check_targets, keep_mask, kept_counts, range_mask, token_costs, undropped

V, PADDED, WIDTH, LENGTH = 9, 12, 3, 5
# Small programs run once: compiling is what takes their time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def reference(logits, targets, confidence, config, *, allowed=None, dropping=True):
    """Returns (summed loss, number of tokens) of logits [Q, T, V]: token by token, in Python numbers."""
    copies, eps, tokens = 2 if config.r_drop_alpha else 1, config.label_smoothing, []
    for q in range(0, len(targets), copies):
        for t in np.flatnonzero(targets[q] != PAD_ID):
            y, losses, extra, both = targets[q, t], [], 0.0, []
            ids = range(V)
            if allowed is not None:
                ids = [v for v in range(V) if allowed[q, t, v]]
            if config.constraint_range:
                ids = [0, 1, 2, 3, *range(*config.constraint_range)]
            for row in logits[q : q + copies, t]:
                total = np.log(sum(np.exp(row[v]) for v in ids))
                lp = {v: (row[v] - total) * confidence[q] for v in ids}
                eps_i = eps / (V - 1) if len(ids) == V and allowed is None else eps / (len(ids) - 1 + 1e-6)
                if len(ids) == 1:
                    eps_i = 0.0
                losses.append((1 - eps - eps_i) * -lp[y] - eps_i * sum(lp.values()))
                both.append(np.array(list(lp.values())))
                c = config.encouraging_log_end
                if c:
                    bonus = {}
                    for v in ids:
                        p = np.exp(lp[v])
                        tangent = p > c and c != 1
                        bonus[v] = np.log(1 - c) - (p - c) / (1 - c) if tangent else np.log(max(1 - p, 1e-5))
                    extra += (1 - eps) * bonus[y] + eps / V * sum(bonus.values())
            if config.r_drop_alpha:
                p, q_ = both
                extra += config.r_drop_alpha / 2 * (sum(np.exp(q_) * (q_ - p)) + sum(np.exp(p) * (p - q_)))
            tokens.append((losses[0], sum(losses) + extra))
    tokens.sort()
    if dropping:
        if config.drop_worst[0]:
            tokens = tokens[: int(len(tokens) * (1 - config.drop_worst[0]))]
        if config.drop_best[0]:
            tokens = tokens[len(tokens) - int(len(tokens) * (1 - config.drop_best[0])) :]
    return sum(total for _, total in tokens), copies * len(tokens)


class Case:
    """Two blocks of drawn hidden states with one output matrix; the loss as a function of all of them, ours and the reference's."""

    def __init__(self, config, *, trie=False, seed=0, queries=4):
        draw = np.random.default_rng(seed)
        copies = 2 if config.r_drop_alpha else 1
        self.config, self.table = config, draw.normal(size=(PADDED, WIDTH))
        self.hidden, self.targets, self.confidence, self.allowed = [], [], [], []
        legal = [0, 2, 3, *range(*(config.constraint_range or (4, V)))]
        for length in (LENGTH, LENGTH - 2):
            targets = draw.choice(legal, size=(queries, length))
            for q in range(queries):
                targets[q, length - q % 3 :] = PAD_ID
            allowed = draw.random((queries, length, V)) < 0.4
            np.put_along_axis(allowed, targets[..., None], True, 2)
            allowed[0, 0] = np.arange(V) == targets[0, 0]  # one id only
            allowed[targets == PAD_ID] = False  # no id at all
            self.hidden.append(1.5 * draw.normal(size=(queries * copies, length, WIDTH)))
            self.targets.append(targets.repeat(copies, 0).astype(np.int32))
            self.confidence.append(draw.choice([0.25, 1.0, 2.0], size=queries).repeat(copies))
            self.allowed.append(allowed.repeat(copies, 0) if trie else None)

    def loss(self, hidden, table, *, chunk=0, step=1):
        """Returns (sum, number of tokens) by the code under test."""
        config = dataclasses.replace(self.config, logit_chunk=chunk)
        never = jnp.where(jnp.arange(PADDED) < V, 0.0, -1e30)
        blocks = [
            block_loss(
                h, logits_of=lambda x: x @ table.T + never, target_ids=jnp.asarray(y), confidence=jnp.asarray(c),
                task_ids=jnp.zeros(len(y), int), num_tasks=1, vocab_size=V, config=config,
                allowed=None if a is None else jnp.asarray(a),
            )
            for h, y, c, a in zip(hidden, self.targets, self.confidence, self.allowed, strict=True)
        ]  # fmt: skip
        sums = group_sums(blocks, config=config, step=step)
        return sums.loss, sums.num_tokens

    def expected(self, hidden, table, **options):
        """Returns the same by the reference. The blocks are padded to one length: PAD costs nothing."""

        def together(arrays, fill):
            return np.concatenate(
                [np.pad(a, ((0, 0), (0, LENGTH - a.shape[1]), *((0, 0),) * (a.ndim - 2)), constant_values=fill) for a in arrays]
            )

        allowed = None if self.allowed[0] is None else together(self.allowed, False)
        logits = (together(hidden, 0.0) @ table.T)[..., :V]
        return reference(logits, together(self.targets, PAD_ID), np.concatenate(self.confidence), self.config, allowed=allowed, **options)

    def gradients(self, **options):
        """Returns ((sum, number of tokens), gradients for the hidden states and the matrix), compiled."""
        run = quick_jit(jax.value_and_grad(lambda h, t: self.loss(h, t, **options), argnums=(0, 1), has_aux=True))
        return jax.device_get(run(self.hidden, self.table))

    def slope(self, direction, size=1e-5):
        """Returns the central difference of the reference's sum along a direction: changes of the hidden states and the matrix."""
        (*hidden, table), sides = direction, []
        for side in (size, -size):
            moved = [h + side * d for h, d in zip(self.hidden, hidden, strict=True)]
            sides.append(self.expected(moved, self.table + side * table)[0])
        return (sides[0] - sides[1]) / (2 * size)


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


OPTIONS = {
    "plain": LossConfig(),
    "smoothed": LossConfig(0.1),
    "range": LossConfig(0.1, constraint_range=(5, 8)),
    "trie": LossConfig(0.1),
    "worst": LossConfig(0.1, drop_worst=(0.2, 0)),
    "best": LossConfig(0.1, drop_best=(0.3, 0)),
    "worst, best": LossConfig(0.1, drop_worst=(0.2, 0), drop_best=(0.3, 0)),
    "encouraging": LossConfig(0.1, encouraging_log_end=0.5),
    "encouraging without end": LossConfig(encouraging_log_end=1.0),
    "encouraging, trie": LossConfig(0.1, encouraging_log_end=0.5),
    "r-drop": LossConfig(r_drop_alpha=1.5),
    "r-drop, trie": LossConfig(0.1, r_drop_alpha=1.5),
    "all": LossConfig(0.1, 0, (5, 8), (0.2, 0), (0.3, 0), 0.5, 1.5),
}


@pytest.mark.parametrize(("name", "chunk"), [*((name, 2) for name in OPTIONS), ("smoothed", 0), ("trie", 0), ("all", 0)])
def test_values_and_gradients_are_those_of_the_equations(name, chunk, float64):
    case = Case(OPTIONS[name], trie="trie" in name)
    (loss, num_tokens), (hidden, table) = case.gradients(chunk=chunk)
    total, expected_tokens = case.expected(case.hidden, case.table)
    np.testing.assert_allclose(loss, total, rtol=1e-12)
    assert num_tokens == expected_tokens
    draw = np.random.default_rng(1)
    for _ in range(8):
        direction = [draw.normal(size=g.shape) for g in (*hidden, table)]
        slope = sum(np.vdot(g, d) for g, d in zip((*hidden, table), direction, strict=True))
        np.testing.assert_allclose(slope, case.slope(direction), rtol=1e-6, atol=1e-6)


def test_nothing_is_dropped_before_its_time(float64):
    case = Case(LossConfig(0.1, drop_worst=(0.2, 10), drop_best=(0.3, 20)))
    run = quick_jit(lambda step: case.loss(case.hidden, jnp.asarray(case.table), step=step))
    _, everything = case.expected(case.hidden, case.table, dropping=False)
    worst = int(everything * 0.8)
    for step, expected in {0: everything, 10: everything, 11: worst, 20: worst, 21: int(worst * 0.7)}.items():
        assert float(run(step)[1]) == expected
    np.testing.assert_allclose(run(10)[0], case.expected(case.hidden, case.table, dropping=False)[0], rtol=1e-12)


def test_eight_devices_are_one(float64):
    case = Case(OPTIONS["all"], queries=8)

    def run(devices):
        mesh = make_mesh(MeshConfig(), devices=devices)
        rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
        loss_of = jax.value_and_grad(lambda h, t: case.loss(h, t, chunk=2), argnums=(0, 1), has_aux=True)
        return jax.device_get(quick_jit(loss_of, in_shardings=([rows, rows], whole))(case.hidden, case.table))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), run(jax.devices()), run(jax.devices()[:1]))


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_one_allowed_id_costs_exactly_nothing(eps):
    """In float32 the official eps_i of 1e5 would make noise of any rounding."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 50, PADDED)) * 30, jnp.float32)
    targets = jnp.arange(50)[None] % V
    allowed = jnp.arange(V) == targets[..., None]

    def loss(logits):
        return token_costs(
            logits, target_ids=targets, confidence=jnp.ones(1), vocab_size=V, config=LossConfig(eps), allowed=allowed
        ).loss.sum()  # fmt: skip

    value, grads = quick_jit(jax.value_and_grad(loss))(logits)
    assert float(value) == 0.0
    assert not np.any(grads)


@pytest.mark.parametrize("config", [OPTIONS["smoothed"], OPTIONS["encouraging"], OPTIONS["r-drop"], OPTIONS["worst"]])
def test_a_target_that_is_not_allowed_costs_infinity_and_ruins_no_gradient(config):
    case = Case(config, trie=True)
    case.allowed[0][:2, 1] = np.arange(V) == (case.targets[0][0, 1] + 1) % V  # another id only
    case.allowed[1][:2, 0] = False  # nothing
    (loss, _), (grads, _) = case.gradients()
    assert np.isfinite(loss) if config.drop_worst[0] else np.isposinf(loss)  # the worst are dropped
    assert all(np.all(np.isfinite(g)) for g in grads)
    if not config.encouraging_log_end and not config.r_drop_alpha:
        assert not np.any(grads[0][:2, 1]) and not np.any(grads[1][:2, 0])
    with pytest.raises(UserError, match=r"block a: found id \d in sequence 0 at position 1, expected one of the 1 ids that are allowed"):
        check_targets(case.targets[0], case.allowed[0], where="block a")


def test_the_host_finds_targets_outside_the_range():
    allowed = range_mask((5, 8), num_ids=V)
    assert np.flatnonzero(allowed).tolist() == [0, 1, 2, 3, 5, 6, 7]
    check_targets(np.array([[5, 7, EOS_ID, PAD_ID]]), allowed, where="x")
    check_targets(np.array([[PAD_ID]]), np.zeros((1, 1, V), bool), where="x")
    with pytest.raises(UserError, match="x: found id 8 in sequence 1 at position 0, expected one of the 7 ids"):
        check_targets(np.array([[5], [8]]), allowed, where="x")


def test_a_range_beside_a_mask_is_refused():
    case = Case(OPTIONS["range"], trie=True)
    with pytest.raises(ValueError, match=r"allowed: found a mask beside loss.constraint_range=\(5, 8\)"):
        case.loss(case.hidden, jnp.asarray(case.table))


@pytest.mark.parametrize("name", ["smoothed", "range", "trie", "all"])
def test_ids_that_pad_the_vocabulary_take_no_part(name):
    case = Case(OPTIONS[name], trie=name == "trie")
    (value, _), (_, grads) = case.gradients()
    assert not np.any(grads[V:])
    case.table[V:] = 7.0
    np.testing.assert_allclose(case.gradients()[0][0], value, rtol=1e-6)


def test_which_tokens_carry_loss():
    targets = jnp.asarray([[5, 6, EOS_ID, PAD_ID], [5, EOS_ID, PAD_ID, PAD_ID], [5, 6, 7, EOS_ID]])
    tasks = jnp.asarray([0, 3, -1])
    keep = [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(keep_mask(targets, tasks), keep)
    np.testing.assert_array_equal(keep_mask(targets, tasks, ignore_prefix=1), np.array(keep) * [0, 1, 1, 1])
    np.testing.assert_array_equal(keep_mask(targets, tasks, ignore_eos=True), [[1, 1, 0, 0], [1, 0, 0, 0], [0] * 4])
    block = block_loss(
        jnp.zeros((3, 4, PADDED)), logits_of=lambda h: h, target_ids=targets, confidence=jnp.ones(3), task_ids=tasks, num_tasks=4,
        vocab_size=V, config=LossConfig(), ignore_prefix=1, ignore_eos=True,
    )  # fmt: skip
    assert float(block.sums.num_tokens) == 1
    np.testing.assert_allclose(block.sums.loss, np.log(PADDED), rtol=1e-6)


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.3, 0.7, 0.8, 1 / 3])
def test_counts_are_pythons_for_every_number_of_tokens(ratio):
    table = kept_counts(10**6, ratio)
    assert table.dtype == np.int32
    np.testing.assert_array_equal(table, [int(n * (1 - ratio)) for n in range(10**6 + 1)])


def test_counts_of_33_tokens():
    assert kept_counts(33, 0.2)[33] == 26
    assert kept_counts(33, 0.05)[33] == 31
    assert kept_counts(5, 0.8)[5] == 0  # 5 * (1 - 0.8) is 0.9999999999999998


@given(
    losses=st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 4.0, np.inf]), min_size=16, max_size=16),
    kept=st.integers(0, 2**16 - 1),
    worst=st.sampled_from([0.0, 0.2, 0.5]),
    best=st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=40)
def test_ties_and_infinities_leave_the_exact_number(losses, kept, worst, best):
    keep = np.array([kept >> i & 1 for i in range(len(losses))], bool)
    stays = np.asarray(undropped(jnp.asarray(losses), jnp.asarray(keep), step=1, drop_worst=(worst, 0), drop_best=(best, 0)))
    order = sorted(np.flatnonzero(keep), key=lambda i: losses[i])
    order = order[: int(len(order) * (1 - worst))]
    order = order[len(order) - int(len(order) * (1 - best)) :]
    assert np.flatnonzero(stays).tolist() == sorted(order)
