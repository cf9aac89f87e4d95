"""The pretraining loss: label-smoothed cross-entropy with a confidence a sequence, and the sum of two token means.

Token loss (the official criterion without a constraint range): with lp = log_softmax(logits) * confidence,
`(1 - eps - eps_i) * -lp[y] + eps_i * -sum_v lp_v`, eps_i = eps / (V - 1), so that the target's whole weight is 1 - eps. V counts the
ids that mean something; padded rows of the vocabulary matrix take no part.
Total: L = sum over pairs / n(pairs) + sum over images and text together / n(images and text), n = number of non-pad target tokens of
the global batch, without confidence (OFA's collater makes these two mini-batches and adds their losses).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ofa_jax.config.schema import PAD_ID


class LossSums(NamedTuple):
    """Sums over the target tokens of one or several blocks; additive."""

    loss: jax.Array  # float []: weighted, smoothed
    num_tokens: jax.Array  # float []: non-pad target tokens, unweighted
    task_nll: jax.Array  # float [num_tasks]: plain negative log-likelihood, in nats, without confidence or smoothing
    task_tokens: jax.Array  # float [num_tasks]


def token_losses(
    logits: jax.Array, *, target_ids: jax.Array, confidence: jax.Array, vocab_size: int, label_smoothing: float
) -> tuple[jax.Array, jax.Array]:
    """Returns (loss, nll), both float [Q, T]: the weighted smoothed loss and the unweighted negative log-likelihood of each token.

    logits: float [Q, T, padded V]; entries from `vocab_size` on are very negative. target_ids: int [Q, T]. confidence: float [Q].
    Pad positions are not masked here.
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    nll = -jnp.take_along_axis(log_probs, target_ids[..., None], axis=-1)[..., 0]
    if label_smoothing == 0.0:
        return nll * confidence[:, None], nll
    eps_i = label_smoothing / (vocab_size - 1)
    real = jnp.arange(logits.shape[-1]) < vocab_size
    smooth = -jnp.sum(jnp.where(real, log_probs, 0.0), axis=-1)
    return ((1.0 - label_smoothing - eps_i) * nll + eps_i * smooth) * confidence[:, None], nll


def block_loss(
    hidden: jax.Array,
    *,
    logits_of: Callable[[jax.Array], jax.Array],
    target_ids: jax.Array,
    confidence: jax.Array,
    task_ids: jax.Array,
    num_tasks: int,
    vocab_size: int,
    label_smoothing: float,
    chunk: int = 0,
) -> LossSums:
    """Returns the sums of one block.

    hidden: float [Q, T, D], the decoder's output. logits_of: hidden [Q, C, D] -> logits [Q, C, padded V]. target_ids: int32 [Q, T],
    PAD where there is no loss. confidence: float [Q]. task_ids: int32 [Q], -1 for padding sequences, which carry no loss.
    chunk: with a positive value the logits of that many positions exist at a time, forward and backward (they are computed again
    in the backward pass); values are the same up to the order of sums.
    """

    def sums(hidden: jax.Array, target_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, nll = token_losses(
            logits_of(hidden), target_ids=target_ids, confidence=confidence, vocab_size=vocab_size, label_smoothing=label_smoothing
        )
        keep = target_ids != PAD_ID
        return jnp.sum(jnp.where(keep, loss, 0.0), axis=1), jnp.sum(jnp.where(keep, nll, 0.0), axis=1)

    target_ids = jnp.where(task_ids[:, None] < 0, PAD_ID, target_ids)
    length = target_ids.shape[1]
    if chunk and chunk < length:
        missing = -length % chunk
        padded_hidden = jnp.pad(hidden, ((0, 0), (0, missing), (0, 0)))
        padded_ids = jnp.pad(target_ids, ((0, 0), (0, missing)), constant_values=PAD_ID)
        num_chunks = (length + missing) // chunk
        hidden_chunks = jnp.moveaxis(padded_hidden.reshape(hidden.shape[0], num_chunks, chunk, hidden.shape[2]), 1, 0)
        id_chunks = jnp.moveaxis(padded_ids.reshape(hidden.shape[0], num_chunks, chunk), 1, 0)
        chunk_losses, chunk_nlls = lax.map(lambda c: jax.checkpoint(sums)(*c), (hidden_chunks, id_chunks))
        sequence_loss, sequence_nll = jnp.sum(chunk_losses, axis=0), jnp.sum(chunk_nlls, axis=0)
    else:
        sequence_loss, sequence_nll = sums(hidden, target_ids)
    sequence_tokens = jnp.sum(target_ids != PAD_ID, axis=1).astype(sequence_nll.dtype)
    # A padding sequence's id -1 would wrap to the last task: it has no tokens and no loss, so any bin takes its zeros.
    bins = jnp.maximum(task_ids, 0)
    return LossSums(
        loss=jnp.sum(sequence_loss),
        num_tokens=jnp.sum(sequence_tokens),
        task_nll=jax.ops.segment_sum(lax.stop_gradient(sequence_nll), bins, num_segments=num_tasks),
        task_tokens=jax.ops.segment_sum(sequence_tokens, bins, num_segments=num_tasks),
    )


def add_sums(parts: list[LossSums]) -> LossSums:
    """Returns the sums over several blocks (at least one)."""
    total = parts[0]
    for part in parts[1:]:
        total = jax.tree.map(jnp.add, total, part)
    return total


def total_loss(groups: dict[str, LossSums]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns (L, the mean loss of each group): the sum of the groups' weighted losses, each over its own number of tokens.

    groups: "pairs", and "images_text" for images and text together; either may be absent. A group without a token counts as 0.
    """
    means = {name: sums.loss / jnp.maximum(sums.num_tokens, 1) for name, sums in groups.items()}
    return sum(means.values(), start=jnp.zeros((), next(iter(means.values())).dtype)), means
