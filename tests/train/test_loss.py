"""Sums over blocks: each token once and by its task, chunks, groups and padding. What a token costs is `test_token_loss`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.config.schema import PAD_ID, LossConfig
from ofa_jax.train.loss import LossSums, add_sums, block_loss, group_sums, total_loss
from ofa_jax.train.token_loss import token_costs

V, PADDED, TASKS = 11, 16, 3


def example(seed, queries=4, length=7):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(queries, length, PADDED)).astype(np.float32) * 3
    logits[..., V:] = -1e30
    targets = draw.integers(2, V, size=(queries, length)).astype(np.int32)
    for q in range(queries):
        targets[q, length - q :] = PAD_ID
    return logits, targets, draw.choice(np.float32([0.25, 1, 2]), size=queries), draw.integers(0, TASKS, size=queries).astype(np.int32)


SMOOTHED = LossConfig(label_smoothing=0.1)


def block(logits, targets, confidence, tasks, config):
    return block_loss(
        jnp.asarray(logits), logits_of=lambda h: h, target_ids=jnp.asarray(targets), confidence=jnp.asarray(confidence),
        task_ids=jnp.asarray(tasks), num_tasks=TASKS, vocab_size=V, config=config,
    )  # fmt: skip


def sums(*arrays, config=SMOOTHED):
    return jax.jit(lambda arrays: group_sums([block(*arrays, config)], config=config, step=1))(arrays)


def test_sums_count_each_token_once_and_by_task():
    logits, targets, confidence, tasks = example(3)
    loss, _, nll = token_costs(jnp.asarray(logits), target_ids=targets, confidence=confidence, vocab_size=V, config=SMOOTHED)
    keep = targets != PAD_ID
    found = sums(logits, targets, confidence, tasks)
    np.testing.assert_allclose(found.loss, loss[keep].sum(), rtol=1e-6)
    assert float(found.num_tokens) == keep.sum()
    for task in range(TASKS):
        rows = tasks == task
        np.testing.assert_allclose(found.task_nll[task], nll[rows][keep[rows]].sum(), rtol=1e-6)
        assert float(found.task_tokens[task]) == keep[rows].sum()


EVERYTHING = LossConfig(0.1, 3, (4, V), (0.3, 0), (0.1, 0), 0.75, 1.5)


@pytest.mark.parametrize("config", [SMOOTHED, EVERYTHING])
def test_a_padding_sequence_counts_nowhere(config):
    logits, targets, confidence, tasks = example(4, queries=6)
    rows = ~np.isin(np.arange(6), [2, 3])  # 2 and 3 are copies of one sequence where there are copies
    found = sums(logits, targets, confidence, np.where(rows, tasks, -1).astype(np.int32), config=config)
    expected = sums(logits[rows], targets[rows], confidence[rows], tasks[rows], config=config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_tokens_are_dropped_among_all_blocks_of_a_group():
    config = LossConfig(0.1, drop_worst=(0.25, 5))
    blocks, tokens = [], []
    for seed, length in ((7, 5), (8, 9)):
        logits, targets, confidence, tasks = example(seed, length=length)
        blocks.append(block(logits, targets, confidence, tasks, config))
        costs = token_costs(jnp.asarray(logits), target_ids=targets, confidence=confidence, vocab_size=V, config=config)
        tokens += np.asarray(costs.loss)[targets != PAD_ID].tolist()
    later = group_sums(blocks, config=config, step=6)
    assert float(later.num_tokens) == int(len(tokens) * 0.75)
    np.testing.assert_allclose(later.loss, sum(sorted(tokens)[: int(len(tokens) * 0.75)]), rtol=1e-6)
    earlier = group_sums(blocks, config=config, step=5)
    assert float(earlier.num_tokens) == len(tokens)
    np.testing.assert_allclose(earlier.loss, sum(tokens), rtol=1e-6)
    # What is reported by task is comparable before and after.
    np.testing.assert_array_equal(earlier.task_nll, later.task_nll)
    assert float(later.task_tokens.sum()) == len(tokens)


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
            task_ids=jnp.asarray(tasks), num_tasks=TASKS, vocab_size=V, config=LossConfig(0.1, logit_chunk=chunk),
        ).sums.loss  # fmt: skip

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
