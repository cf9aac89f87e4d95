"""What one target token costs: OFA's smoothed cross-entropy and what its criteria add to it, as pure functions of logits.

Sources are the official criteria `adjust_label_smoothed_cross_entropy` and, for the bonus, `adjust_label_smoothed_encouraging_loss`.
With lp = log_softmax(logits over the allowed ids) * confidence and y the target:

    loss  = (1 - eps - eps_i) * -lp[y] + eps_i * -sum_v lp_v    over the allowed ids v, so that y's whole weight is 1 - eps
    eps_i = eps / (V - 1)                                       where every id is allowed
    eps_i = eps / (n - 1 + 1e-6)                                where n ids are, by a constraint range or by a trie at this position

Allowed ids come as a bool array over the last axis; None allows every id. Rows that only pad the vocabulary matrix never take part. A
position that allows one id smooths nothing: the formula's eps_i of about 1e6 * eps would multiply the rounding of a zero. A target that
is not allowed, also where nothing is, costs infinity, its negative log-likelihood, and this cross-entropy has no gradient: the fault
shows in the loss and ruins no parameter. No value or gradient is NaN. `check_targets` finds such targets on the host.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import EOS_ID, PAD_ID, UNK_ID, LossConfig
from ofa_jax.models.ofa import NEVER
from ofa_jax.parallel import layout

COPIES = 2  # of every sequence under R-Drop; they are neighbours: 2 i and 2 i + 1


class TokenCosts(NamedTuple):
    """What target tokens cost, float [Q, T], in nats."""

    loss: jax.Array  # weighted and smoothed, with the encouraging bonus and R-Drop's divergence where they are on
    rank: jax.Array | None  # weighted and smoothed alone, without a gradient: the order of drop-worst and drop-best
    nll: jax.Array  # plain negative log-likelihood, without confidence or smoothing


def keep_mask(target_ids: jax.Array, task_ids: jax.Array, *, ignore_prefix: int = 0, ignore_eos: bool = False) -> jax.Array:
    """Returns bool [Q, T]: the target tokens that carry loss.

    Neither padding tokens nor padding sequences (task -1) do, nor the first `ignore_prefix` positions, nor, with `ignore_eos`, EOS
    (the official criterion's `ignore_prefix_size` and `ignore_eos`). target_ids: int [Q, T]. task_ids: int [Q].
    """
    keep = (target_ids != PAD_ID) & (task_ids >= 0)[:, None]
    if ignore_prefix:
        keep &= jnp.arange(target_ids.shape[1]) >= ignore_prefix
    return keep & (target_ids != EOS_ID) if ignore_eos else keep


def range_mask(constraint_range: tuple[int, ...], *, num_ids: int) -> np.ndarray:
    """Returns bool [num_ids]: the ids that a `LossConfig.constraint_range` (first, end) allows (official `constraint_range`).

    They are BOS, PAD, EOS, UNK and those from first up to end, end not included. Raises ValueError for a range that is no pair.
    """
    first, end = constraint_range
    ids = np.arange(num_ids)
    return (ids <= UNK_ID) | (first <= ids) & (ids < end)


def check_targets(target_ids: np.ndarray, allowed: np.ndarray, *, where: str) -> None:
    """Raises `UserError`, beginning with `where`, for the first target that is not allowed; padding may stand anywhere.

    target_ids: int [Q, T]. allowed: bool, broadcasts to [Q, T, V]. NumPy arrays of the host: a compiled step cannot raise.
    """
    allowed = np.broadcast_to(allowed, (*target_ids.shape, allowed.shape[-1]))
    legal = (target_ids == PAD_ID) | np.take_along_axis(allowed, target_ids[..., None], -1)[..., 0]
    if not legal.all():
        q, t = np.argwhere(~legal)[0]
        raise UserError(
            f"{where}: found id {target_ids[q, t]} in sequence {q} at position {t}, "
            f"expected one of the {np.count_nonzero(allowed[q, t])} ids that are allowed there"
        )


def log_probabilities(logits: jax.Array, allowed: jax.Array | np.ndarray | None = None) -> jax.Array:
    """Returns the log-softmax of logits [..., padded V] over the allowed ids; all others are about -1e30, their probability exactly 0.

    A position that allows nothing has no softmax: its logits are taken as they are, and nothing may be read there.
    """
    if allowed is not None:
        nothing = layout.vocab_sum(jnp.sum(allowed, axis=-1, keepdims=True)) == 0
        logits = jnp.where(allowed | nothing, logits, NEVER)
    if layout.vocab_shards() == 1:
        return jax.nn.log_softmax(logits, axis=-1)
    shifted = logits - layout.vocab_max(jnp.max(logits, axis=-1, keepdims=True))
    return shifted - jnp.log(layout.vocab_sum(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True)))


def pick(values: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns the entries of `values` [..., padded V] at `ids` int [...], wherever the vocabulary's parts lie.

    A sum with one term, which joins other passes over the vocabulary; the gradient of a gather is a scatter into an array of zeros.
    """
    mine = _own_ids(values.shape[-1]) == ids[..., None]
    return layout.vocab_sum(jnp.sum(jnp.where(mine, values, 0), axis=-1))


def _own_ids(num: int) -> jax.Array | np.ndarray:
    """The ids of this device's `num` columns of the logits."""
    return layout.first_id(num) + np.arange(num)


def smoothed_losses(
    log_probs: jax.Array,
    *,
    target_ids: jax.Array,
    confidence: jax.Array,
    vocab_size: int,
    label_smoothing: float,
    allowed: jax.Array | np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (loss, nll), both float [Q, T]: the loss of the module's docstring, and the plain negative log-likelihood.

    log_probs: float [Q, T, padded V], `log_probabilities` over `allowed` (bool, broadcasts to them; None: every id). target_ids: int
    [Q, T]. confidence: float [Q].
    """
    nll = -pick(log_probs, target_ids)
    if label_smoothing == 0.0:
        loss = nll * confidence[:, None]
    else:
        if allowed is None:
            counted, eps_i = _own_ids(log_probs.shape[-1]) < vocab_size, label_smoothing / (vocab_size - 1)
        else:
            others = layout.vocab_sum(jnp.sum(allowed, axis=-1).astype(log_probs.dtype)) - 1.0
            counted, eps_i = allowed, jnp.where(others > 0, label_smoothing / (jnp.maximum(others, 1.0) + 1e-6), 0.0)
        smooth = -layout.vocab_sum(jnp.sum(jnp.where(counted, log_probs, 0.0), axis=-1))
        loss = ((1.0 - label_smoothing - eps_i) * nll + eps_i * smooth) * confidence[:, None]
    if allowed is None:
        return loss, nll
    legal = pick(jnp.broadcast_to(allowed, log_probs.shape).astype(jnp.int32), target_ids) > 0
    return jnp.where(legal, loss, jnp.inf), jnp.where(legal, nll, jnp.inf)


def encouraging_bonus(
    weighted_log_probs: jax.Array, *, target_ids: jax.Array, vocab_size: int, label_smoothing: float, log_end: float
) -> jax.Array:
    """Returns float [Q, T], at most 0: what the encouraging loss adds for being sure (official `adjust_label_smoothed_encouraging_loss`).

    It is (1 - eps) * bonus(p_y) + eps / V * sum_v bonus(p_v) with bonus(p) = ln(max(1 - p, 1e-5)), continued from p = log_end on by its
    tangent; log_end = 1 has no tangent. weighted_log_probs: float [Q, T, padded V], times confidence; p are their exponentials.
    """
    probs = jnp.exp(weighted_log_probs)
    bonus = jnp.log(jnp.maximum(1.0 - probs, 1e-5))
    if log_end < 1.0:
        bonus = jnp.where(probs > log_end, math.log(1.0 - log_end) - (probs - log_end) / (1.0 - log_end), bonus)
    of_target = pick(bonus, target_ids)
    if label_smoothing == 0.0:
        return of_target
    of_all = layout.vocab_sum(jnp.sum(jnp.where(_own_ids(bonus.shape[-1]) < vocab_size, bonus, 0.0), axis=-1))
    return (1.0 - label_smoothing) * of_target + label_smoothing / vocab_size * of_all


def symmetric_divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    """Returns KL(q, p) + KL(p, q) = sum_v (exp q_v - exp p_v) (q_v - p_v) of two arrays of log-probabilities, over the last axis.

    R-Drop (Liang et al. 2021, arXiv 2106.14448) adds alpha / 2 times this; the official criterion calls half of it `kl_loss`.
    """
    return layout.vocab_sum(jnp.sum((jnp.exp(q) - jnp.exp(p)) * (q - p), axis=-1))


def by_copy(x: jax.Array) -> jax.Array:
    """Returns x [COPIES Q, ...] as [Q, COPIES, ...]: the copies of each sequence side by side."""
    return x.reshape(-1, COPIES, *x.shape[1:])


def token_costs(
    logits: jax.Array,
    *,
    target_ids: jax.Array,
    confidence: jax.Array,
    vocab_size: int,
    config: LossConfig,
    allowed: jax.Array | None = None,
) -> TokenCosts:
    """Returns the costs of all positions; padding is not masked here.

    With `config.r_drop_alpha`, sequences 2 i and 2 i + 1 are copies under different dropout, and each carries half of what their
    divergence adds, alpha / 2 times it (the two log-probabilities times confidence, as official).

    logits: float [Q, T, padded V]; entries from `vocab_size` on are very negative. target_ids: int [Q, T]. confidence: float [Q].
    allowed: bool, broadcasts to [Q, T, V]; a ValueError beside `config.constraint_range`. With logits of some ids alone, [Q, T, U], it is
    of those, and target_ids are their columns (-1: of none of them); `vocab_size` stays what the encouraging bonus divides by.
    """
    if config.constraint_range:
        if allowed is not None:
            raise ValueError(f"allowed: found a mask beside loss.constraint_range={config.constraint_range}, expected one of the two")
        allowed = range_mask(config.constraint_range, num_ids=vocab_size)
    if allowed is not None:
        part = logits.shape[-1]
        padding = part * layout.vocab_shards() - allowed.shape[-1]
        allowed = jnp.pad(allowed, (*((0, 0),) * (allowed.ndim - 1), (0, padding)))
        allowed = lax.dynamic_slice_in_dim(allowed, layout.first_id(part), part, -1) if layout.vocab_shards() > 1 else allowed
    log_probs = log_probabilities(logits, allowed)
    loss, nll = smoothed_losses(
        log_probs,
        target_ids=target_ids,
        confidence=confidence,
        vocab_size=vocab_size,
        label_smoothing=config.label_smoothing,
        allowed=allowed,
    )
    rank = lax.stop_gradient(loss)
    if config.encouraging_log_end or config.r_drop_alpha:
        weighted = log_probs * confidence[:, None, None]
        if config.encouraging_log_end:
            loss = loss + encouraging_bonus(
                weighted,
                target_ids=target_ids,
                vocab_size=vocab_size,
                label_smoothing=config.label_smoothing,
                log_end=config.encouraging_log_end,
            )
        if config.r_drop_alpha:
            pairs = by_copy(weighted)
            divergence = symmetric_divergence(pairs[:, 0], pairs[:, 1])
            loss = loss + jnp.repeat(config.r_drop_alpha / 2 / COPIES * divergence, COPIES, axis=0)
    return TokenCosts(loss, rank, nll)


def kept_counts(limit: int, ratio: float) -> np.ndarray:
    """Returns int32 [limit + 1]: int(n * (1 - ratio)) for every n from 0 to `limit`, how many of n tokens stay when `ratio` is dropped.

    A table made on the host, because the official number is a product of doubles cut to an integer, which 32-bit arithmetic misses.
    """
    return (np.arange(limit + 1) * (1.0 - ratio)).astype(np.int32)


def undropped(
    rank: jax.Array, keep: jax.Array, *, step: jax.Array | int, drop_worst: tuple[float, int], drop_best: tuple[float, int]
) -> jax.Array:
    """Returns bool [N]: the tokens that stay of those in `keep`, once `step` is more than the updates that each pair names.

    `drop_worst` = (ratio, updates) keeps the int(n (1 - ratio)) smallest of the n losses, `drop_best` as many of the largest of what is
    left (official `drop_worst_ratio`, `drop_worst_after` and their like). Of equal losses the later token is the larger. The order is
    one of global positions, so that devices do not matter.

    rank: float [N], the losses. keep: bool [N]. step: int [], updates made before this one.
    """
    tokens = jnp.arange(rank.shape[0], dtype=jnp.int32)
    _, _, ascending = lax.sort(((~keep).astype(jnp.int32), lax.stop_gradient(rank), tokens), num_keys=2, is_stable=True)
    place = jnp.zeros_like(tokens).at[ascending].set(tokens)

    def stay(count: jax.Array, drop: tuple[float, int]) -> jax.Array:
        ratio, updates = drop
        if ratio == 0:
            return count
        return jnp.where(step > updates, jnp.asarray(kept_counts(rank.shape[0], ratio))[count], count)

    smallest = stay(jnp.sum(keep, dtype=jnp.int32), drop_worst)
    return (place < smallest) & (place >= smallest - stay(smallest, drop_best))
