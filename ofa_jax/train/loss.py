"""The pretraining loss: sums of token costs over blocks, and the sum of two token means.

What a token costs is `train/token_loss`. Total: L = sum over pairs / n(pairs) + sum over images and text together / n(images and text),
n = number of target tokens of the global batch that carry loss, without confidence (OFA's collater makes these two mini-batches and
adds their losses). Drop-worst and drop-best choose among all tokens of such a mini-batch, and n counts those that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ofa_jax.config.schema import PAD_ID, LossConfig
from ofa_jax.parallel import layout
from ofa_jax.train.token_loss import COPIES, TokenCosts, by_copy, keep_mask, token_costs, undropped


class LossSums(NamedTuple):
    """Sums over the target tokens of one or several blocks; additive. The copies of R-Drop count each."""

    loss: jax.Array  # float []: weighted, smoothed, with the config's additions, over the tokens that stay
    num_tokens: jax.Array  # float []: the tokens that stay, unweighted
    task_nll: jax.Array  # float [num_tasks]: plain negative log-likelihood in nats of all target tokens, dropped ones too
    task_tokens: jax.Array  # float [num_tasks]: all target tokens


class LossReport(NamedTuple):
    """What an objective says of a batch beside its loss."""

    stats: Any  # new running statistics
    groups: dict[str, LossSums]  # by group of blocks that share a quotient; empty where there are no tokens
    scalars: dict[str, jax.Array]  # float [] by metric name


class RankedTokens(NamedTuple):
    """Tokens of one block among which drop-worst and drop-best choose, [Q, T]; the copies of R-Drop stay or go together."""

    loss: jax.Array  # float: of all copies
    rank: jax.Array  # float: of the first copy
    keep: jax.Array  # bool: carries loss


class BlockLoss(NamedTuple):
    """What one block costs."""

    sums: LossSums  # over all its tokens
    tokens: RankedTokens | None  # None where the config drops nothing


@jax.named_scope("logits")
def block_loss(
    hidden: jax.Array,
    *,
    logits_of: Callable[[jax.Array], jax.Array],
    target_ids: jax.Array,
    confidence: jax.Array,
    task_ids: jax.Array,
    num_tasks: int,
    vocab_size: int,
    config: LossConfig,
    allowed: jax.Array | None = None,
    columns_of: Callable[[jax.Array], jax.Array] | None = None,
    ignore_prefix: int = 0,
    ignore_eos: bool = False,
) -> BlockLoss:
    """Returns what one block costs, before anything is dropped.

    With `config.logit_chunk` the logits of that many positions exist at a time, forward and backward (they are computed again in the
    backward pass); values are the same up to the order of sums.

    Args:
      hidden: float [Q, T, D], the decoder's output; with `config.r_drop_alpha`, Q counts the copies of every sequence, neighbours.
      logits_of: hidden [Q, C, D] -> logits [Q, C, padded V].
      target_ids: int32 [Q, T], PAD where there is no loss.
      confidence: float [Q].
      task_ids: int32 [Q], -1 for padding sequences, which carry no loss.
      allowed: bool [Q, T, V], the ids that a trie allows; None: all, or those of `config.constraint_range`.
      columns_of: ids int32 -> their columns in logits that are of some ids alone, [Q, C, U], and in `allowed`; None: an id is its column.
      ignore_prefix, ignore_eos: as in `keep_mask`.
    """
    by_token = config.drop_worst[0] > 0 or config.drop_best[0] > 0

    def costs(hidden: jax.Array, target_ids: jax.Array, allowed: jax.Array | None) -> TokenCosts:
        token = token_costs(
            logits_of(layout.meet_vocab(hidden)),
            target_ids=layout.meet_vocab(target_ids if columns_of is None else columns_of(target_ids)),
            confidence=layout.meet_vocab(confidence),
            vocab_size=vocab_size,
            config=config,
            allowed=None if allowed is None else layout.meet_vocab(allowed),
        )
        token = jax.tree.map(layout.leave_vocab, token)
        keep = target_ids != PAD_ID
        token = TokenCosts(jnp.where(keep, token.loss, 0.0), token.rank if by_token else None, jnp.where(keep, token.nll, 0.0))
        return token if by_token else _sum_positions(token)

    keep = keep_mask(target_ids, task_ids, ignore_prefix=ignore_prefix, ignore_eos=ignore_eos)
    target_ids = jnp.where(keep, target_ids, PAD_ID)
    if 0 < config.logit_chunk < target_ids.shape[1]:
        sequence = _in_chunks(costs, (hidden, target_ids, allowed), chunk=config.logit_chunk, by_token=by_token)
    else:
        sequence = costs(hidden, target_ids, allowed)
    tokens = None
    if by_token:
        tokens = RankedTokens(sequence.loss, sequence.rank, keep)
        if config.r_drop_alpha:
            loss, rank, keep = map(by_copy, tokens)
            tokens = RankedTokens(jnp.sum(loss, axis=1), rank[:, 0], keep[:, 0])
        sequence = _sum_positions(sequence._replace(rank=None))
    sequence_tokens = jnp.sum(target_ids != PAD_ID, axis=1).astype(sequence.nll.dtype)
    # A padding sequence's id -1 would wrap to the last task: it has no tokens and no loss, so any bin takes its zeros.
    bins = jnp.maximum(task_ids, 0)
    sums = LossSums(
        loss=jnp.sum(sequence.loss),
        num_tokens=jnp.sum(sequence_tokens),
        task_nll=jax.ops.segment_sum(lax.stop_gradient(sequence.nll), bins, num_segments=num_tasks),
        task_tokens=jax.ops.segment_sum(sequence_tokens, bins, num_segments=num_tasks),
    )
    return BlockLoss(sums, tokens)


def _sum_positions(costs: TokenCosts) -> TokenCosts:
    return jax.tree.map(lambda x: jnp.sum(x, axis=1), costs)


def _in_chunks(costs: Callable[..., TokenCosts], inputs: tuple[jax.Array | None, ...], *, chunk: int, by_token: bool) -> TokenCosts:
    """Returns `costs(*inputs)` for inputs [Q, T, ...] (or None), computed for `chunk` positions at a time, and again backward."""
    length = jax.tree.leaves(inputs)[0].shape[1]

    def split(x: jax.Array) -> jax.Array:
        # One filler serves all inputs: with PAD as target nothing else at the position counts.
        x = jnp.pad(x, ((0, 0), (0, -length % chunk), *((0, 0),) * (x.ndim - 2)), constant_values=PAD_ID)
        return jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // chunk, chunk, *x.shape[2:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length] if by_token else jnp.sum(x, axis=0)

    return jax.tree.map(join, lax.map(lambda pieces: jax.checkpoint(costs)(*pieces), jax.tree.map(split, inputs)))


def group_sums(blocks: Sequence[BlockLoss], *, config: LossConfig, step: jax.Array | int) -> LossSums:
    """Returns the sums of the blocks (at least one) that share a quotient, after the config's drop-worst and drop-best.

    step: int [], updates made before this one; dropping begins after the number of updates that the config names.
    """
    sums = add_sums([block.sums for block in blocks])
    tokens = [block.tokens for block in blocks if block.tokens is not None]
    if not tokens:
        return sums
    # Of all devices' tokens, in the batch's order.
    ranks, keeps = [layout.all_rows(block.rank) for block in tokens], [layout.all_rows(block.keep) for block in tokens]
    rank, keep = (jnp.concatenate([jnp.ravel(x) for x in field]) for field in (ranks, keeps))
    chosen = undropped(rank, keep, step=step, drop_worst=config.drop_worst, drop_best=config.drop_best)
    parts = jnp.split(chosen, np.cumsum([x.size for x in ranks])[:-1])
    own = [layout.own(part.reshape(x.shape), block.rank.shape[0]) for part, x, block in zip(parts, ranks, tokens, strict=True)]
    stays = jnp.concatenate([jnp.ravel(x) for x in own])
    loss = jnp.concatenate([jnp.ravel(block.loss) for block in tokens])
    copies = COPIES if config.r_drop_alpha else 1
    return sums._replace(loss=jnp.sum(jnp.where(stays, loss, 0.0)), num_tokens=copies * jnp.sum(stays).astype(loss.dtype))


def add_sums(parts: Sequence[LossSums]) -> LossSums:
    """Returns the sums over several blocks (at least one)."""
    total = parts[0]
    for part in parts[1:]:
        total = jax.tree.map(jnp.add, total, part)
    return total


def total_loss(groups: dict[str, LossSums], counts: dict[str, jax.Array] | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns (L, the mean loss of each group): the sum of the groups' weighted losses, each over its own number of tokens.

    groups: "pairs", and "images_text" for images and text together; either may be absent. A group without a token counts as 0.
    counts: numbers of tokens of the global batch, by group, where `groups` are sums over a part of it; its parts' L add up. None: the
    tokens of `groups`, on all devices that run it on rows of their own.
    """
    counts = {name: layout.total(sums.num_tokens) for name, sums in groups.items()} if counts is None else counts
    means = {name: sums.loss / jnp.maximum(counts[name], 1) for name, sums in groups.items()}
    return sum(means.values(), start=jnp.zeros((), next(iter(means.values())).dtype)), means
