"""Pre-training of the image front alone: name what the pictures show, with the words that the tasks' targets have for them.

OFA starts from a ResNet that was trained on ImageNet (OFA paper, section 3.2; the released scripts' `resnet_model_path`). Where no such
weights fit, as for the narrow front of `nano`, this objective makes some from the run's own data. The words of a row are the text
pieces of all its targets. Two kinds of evidence:

- In a row of `detection` every word has a box. A patch whose centre lies in boxes is to name their words, in equal parts; any other
  patch is to say EOS, nothing. The patches with and those without words count alike, because most patches show nothing and a plain
  mean would mostly teach to say so.
- In any other row the words are somewhere in the picture: a word's score is the log-sum-exp of its scores over the patches, and the
  distinct words share the probability in equal parts (cross-entropy with k-hot targets: Mahajan et al. 2018, arXiv 1805.00932,
  section 2.1). Answers that no picture tells alone, as "yes", cost what their frequency costs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ofa_jax.config.schema import EOS_ID, UNK_ID, RunConfig, VocabConfig
from ofa_jax.data.batch import Block
from ofa_jax.models import picture_namer, resnet
from ofa_jax.models.layers import row_keys
from ofa_jax.models.precision import policy
from ofa_jax.train.loss import LossReport, LossSums, add_sums, total_loss
from ofa_jax.train.pretraining import GROUP_OF_STREAM
from ofa_jax.train.token_objective import TokenObjective


class PictureWords(TokenObjective):
    """The image front and a linear layer; an `Objective`. One row counts as one token of the task of its first sequence."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.graphdef = jax.eval_shape(self._create, jax.random.key(0))[0]

    def _create(self, key: jax.Array) -> tuple[nnx.GraphDef, nnx.State]:
        return picture_namer.create(self.config.model, self.config.vocab, key, precision=self.config.precision)

    def init(self, key: jax.Array) -> tuple[nnx.State, Any]:
        return self._create(key)[1], resnet.init_stats(self.config.model.resnet, policy(self.config.precision).accum)

    def num_params(self, params: Any) -> int:
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))

    def counts(self, blocks: dict[str, Block]) -> dict[str, jax.Array]:
        counts: dict[str, jax.Array] = {}
        for config in self.config.data.row_blocks:
            group, block = GROUP_OF_STREAM[config.stream], blocks[config.name]
            rows = jnp.sum(block.task_ids.reshape(block.images.shape[0], -1)[:, 0] >= 0)
            counts[group] = counts.get(group, jnp.zeros((), rows.dtype)) + rows
        return counts

    def loss(
        self,
        params: Any,
        stats: Any,
        blocks: dict[str, Block],
        key: jax.Array | None,
        *,
        num_tasks: int,
        step: jax.Array | int = 0,
        counts: dict[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, LossReport]:
        del step  # a row's loss is the same at every update
        namer, vocab = nnx.merge(self.graphdef, params), self.config.vocab
        groups: dict[str, list[LossSums]] = {}
        # All pictures go through the front at once: normalised block by block, they would meet other running statistics afterwards.
        images = jnp.concatenate([blocks[config.name].images for config in self.config.data.row_blocks])
        keys = None
        if key is not None:  # a picture's key goes by its place in its own block
            parts = [
                row_keys(jax.random.fold_in(key, i), blocks[b.name].images.shape[0]) for i, b in enumerate(self.config.data.row_blocks)
            ]
            keys = jnp.concatenate(parts)
        scores, stats = namer(images, stats=stats, train=key is not None, key=keys)
        start = 0
        for config in self.config.data.row_blocks:
            block = blocks[config.name]
            rows = block.images.shape[0]
            own, start = scores[start : start + rows], start + rows
            targets = block.target_ids.reshape(rows, -1)
            if {source.row for source in config.sources} == {"detection"}:
                losses = located_words_loss(own, targets, vocab, image_px=config.image_px)
            else:
                losses = bag_of_words_loss(own, targets, vocab)
            tasks = block.task_ids.reshape(rows, -1)[:, 0]
            groups.setdefault(GROUP_OF_STREAM[config.stream], []).append(row_sums(losses, tasks, num_tasks=num_tasks))
        sums = {name: add_sums(parts) for name, parts in groups.items()}
        return total_loss(sums, counts)[0], LossReport(stats, sums, {})


def is_word(ids: jax.Array, vocab: VocabConfig) -> jax.Array:
    """Returns where `ids` are text pieces that say something: no BOS, PAD, EOS, UNK or MASK, no code and no bin."""
    return (ids > UNK_ID) & (ids < vocab.mask_id)


def bag_of_words_loss(scores: jax.Array, targets: jax.Array, vocab: VocabConfig) -> jax.Array:
    """Returns the loss [R] of rows whose words are somewhere in the picture; 0 for a row without words.

    scores: float [R, P, V]. targets: int [R, T], the ids of all targets of the row.
    """
    earlier = np.tril(np.ones((targets.shape[1],) * 2, bool), -1)
    repeated = jnp.any((targets[:, :, None] == targets[:, None]) & earlier, 2)
    words = is_word(targets, vocab) & ~repeated
    log_probs = jax.nn.log_softmax(jax.nn.logsumexp(scores, 1))
    nll = -jnp.take_along_axis(log_probs, jnp.where(words, targets, 0), 1)
    return jnp.sum(jnp.where(words, nll, 0.0), 1) / jnp.maximum(jnp.sum(words, 1), 1)


def located_words_loss(scores: jax.Array, targets: jax.Array, vocab: VocabConfig, *, image_px: int) -> jax.Array:
    """Returns the loss [R] of detection targets: four bins (left, top, right, bottom) and a label, repeated.

    It is half the mean over the patches that have words and half the mean over those that have none; a mean without patches is 0.

    scores: float [R, P, V] of a square grid of patches over `image_px`. targets: int [R, T].
    """
    rows, num_patches = scores.shape[:2]
    words, boxes = is_word(targets, vocab), boxes_of_tokens(targets, vocab)  # [R, T], [R, T, 4]
    side = round(num_patches**0.5)
    centers = (np.arange(side) + 0.5) * (image_px / side)
    y, x = (c.reshape(-1) for c in np.meshgrid(centers, centers, indexing="ij"))
    left, top, right, bottom = (boxes[:, None, :, i] for i in range(4))
    inside = (left <= x[:, None]) & (x[:, None] <= right) & (top <= y[:, None]) & (y[:, None] <= bottom)  # [R, P, T]
    named = inside & words[:, None]
    log_probs = jax.nn.log_softmax(scores)
    ids = jnp.broadcast_to(jnp.where(words, targets, 0)[:, None], (rows, num_patches, targets.shape[1]))
    count = jnp.sum(named, 2)
    nll = jnp.sum(jnp.where(named, -jnp.take_along_axis(log_probs, ids, 2), 0.0), 2) / jnp.maximum(count, 1)

    def mean(values: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, values, 0.0), 1) / jnp.maximum(jnp.sum(where, 1), 1)

    return 0.5 * mean(nll, count > 0) + 0.5 * mean(-log_probs[..., EOS_ID], count == 0)


def boxes_of_tokens(targets: jax.Array, vocab: VocabConfig) -> jax.Array:
    """Returns float32 [R, T, 4]: for each position the box, in pixels, that the four bins before it write; 0 where there is none yet."""
    bins = targets >= vocab.first_bin_id
    count = jnp.cumsum(bins, 1)
    box = (count - 1) // 4  # which box a position belongs to: -1 before the first
    pixels = jnp.where(bins, targets - vocab.first_bin_id, 0) * (vocab.canvas_px / (vocab.num_bins - 1))
    coordinate = jnp.where(bins, (count - 1) % 4, -1)
    same = (box[:, :, None] == box[:, None]) & bins[:, None]  # [R, T, T']: bin T' belongs to the box of position T
    return jnp.einsum("rts,rs,rsc->rtc", same.astype(jnp.float32), pixels.astype(jnp.float32), jax.nn.one_hot(coordinate, 4))


def row_sums(losses: jax.Array, task_ids: jax.Array, *, num_tasks: int) -> LossSums:
    """Returns the sums of rows' losses [R], each counted as one token of its task [R]; a padding row (task -1) counts nowhere."""
    real = (task_ids >= 0).astype(losses.dtype)
    losses, bins = losses * real, jnp.maximum(task_ids, 0)
    return LossSums(
        loss=jnp.sum(losses),
        num_tokens=jnp.sum(real),
        task_nll=jax.ops.segment_sum(lax.stop_gradient(losses), bins, num_segments=num_tasks),
        task_tokens=jax.ops.segment_sum(real, bins, num_segments=num_tasks),
    )
