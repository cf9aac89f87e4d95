"""The loss against plain NumPy in float64, written from the formulas; chunks; groups and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.config.schema import PAD_ID
from ofa_jax.train.loss import LossSums, add_sums, block_loss, token_losses, total_loss

V, PADDED, TASKS = 11, 16, 3


def reference(logits, targets, confidence, eps):
    """Token by token: -lp[y], -sum lp, confidence times log-probabilities, over the V ids that mean something."""
    loss = np.zeros(targets.shape)
    nll = np.zeros(targets.shape)
    for q, t in np.ndindex(targets.shape):
        row = logits[q, t, :V].astype(np.float64)
        lp = row - row.max() - np.log(np.sum(np.exp(row - row.max())))
        eps_i = eps / (V - 1)
        weighted = lp * confidence[q]
        loss[q, t] = (1 - eps - eps_i) * -weighted[targets[q, t]] + eps_i * -weighted.sum()
        nll[q, t] = -lp[targets[q, t]]
    return loss, nll


def example(seed, queries=4, length=7):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(queries, length, PADDED)).astype(np.float32) * 3
    logits[..., V:] = -1e30
    targets = draw.integers(2, V, size=(queries, length)).astype(np.int32)
    for q in range(queries):
        targets[q, length - q :] = PAD_ID
    return logits, targets, draw.choice(np.float32([0.25, 1, 2]), size=queries), draw.integers(0, TASKS, size=queries).astype(np.int32)


@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.0, 0.1, 0.3]))
@settings(max_examples=10, deadline=None)
def test_token_losses_are_the_formula(seed, eps):
    logits, targets, confidence, _ = example(seed)
    found = token_losses(jnp.asarray(logits), target_ids=jnp.asarray(targets), confidence=confidence, vocab_size=V, label_smoothing=eps)
    for a, b in zip(found, reference(logits, targets, confidence, eps), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def sums(logits, targets, confidence, tasks, *, eps=0.1, chunk=0):
    return block_loss(
        jnp.asarray(logits), logits_of=lambda h: h, target_ids=jnp.asarray(targets), confidence=jnp.asarray(confidence),
        task_ids=jnp.asarray(tasks), num_tasks=TASKS, vocab_size=V, label_smoothing=eps, chunk=chunk,
    )  # fmt: skip


def test_sums_count_each_token_once_and_by_task():
    logits, targets, confidence, tasks = example(3)
    loss, nll = reference(logits, targets, confidence, 0.1)
    keep = targets != PAD_ID
    found = sums(logits, targets, confidence, tasks)
    np.testing.assert_allclose(found.loss, loss[keep].sum(), rtol=1e-6)
    assert float(found.num_tokens) == keep.sum()
    for task in range(TASKS):
        rows = tasks == task
        np.testing.assert_allclose(found.task_nll[task], nll[rows][keep[rows]].sum(), rtol=1e-6)
        assert float(found.task_tokens[task]) == keep[rows].sum()


def test_a_padding_sequence_counts_nowhere():
    logits, targets, confidence, tasks = example(4)
    with_padding = np.where(np.arange(4) == 1, -1, tasks).astype(np.int32)
    rows = np.arange(4) != 1
    found, expected = sums(logits, targets, confidence, with_padding), sums(logits[rows], targets[rows], confidence[rows], tasks[rows])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_chunks_change_neither_values_nor_gradients(chunk):
    _, targets, confidence, tasks = example(5)
    draw = np.random.default_rng(0)
    hidden = jnp.asarray(draw.normal(size=(4, 7, 5)), jnp.float32)
    table = jnp.asarray(draw.normal(size=(PADDED, 5)), jnp.float32)
    never = jnp.where(jnp.arange(PADDED) < V, 0.0, -1e30)

    def loss(hidden, table, chunk):
        return block_loss(
            hidden, logits_of=lambda h: h @ table.T + never, target_ids=jnp.asarray(targets), confidence=jnp.asarray(confidence),
            task_ids=jnp.asarray(tasks), num_tasks=TASKS, vocab_size=V, label_smoothing=0.1, chunk=chunk,
        ).loss  # fmt: skip

    found, whole = (jax.value_and_grad(loss, argnums=(0, 1))(hidden, table, c) for c in (chunk, 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, whole)


def test_padded_ids_get_no_gradient():
    logits, targets, confidence, tasks = example(6)
    grads = jax.grad(lambda x: sums(x, targets, confidence, tasks).loss)(jnp.asarray(logits))
    assert np.all(np.asarray(grads)[..., V:] == 0)
    assert np.all(np.isfinite(grads))


def test_the_total_is_a_sum_of_two_token_means():
    def part(loss, tokens):
        return LossSums(jnp.float32(loss), jnp.float32(tokens), jnp.zeros(TASKS), jnp.zeros(TASKS))

    images_text = add_sums([part(30.0, 10), part(6.0, 2)])
    loss, means = total_loss({"pairs": part(8.0, 4), "images_text": images_text})
    assert float(loss) == 2.0 + 3.0
    assert {name: float(mean) for name, mean in means.items()} == {"pairs": 2.0, "images_text": 3.0}
    assert float(total_loss({"pairs": part(0.0, 0)})[0]) == 0.0
