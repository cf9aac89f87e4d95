"""OFA's objective: every block is encoded and decoded, and the two token means of `train/loss` are added.

For every block the images are embedded once and the sequences of a row share them. R-Drop runs every sequence twice, side by side,
with dropout and sampled patches of its own. The official code repeats the images too; here the copies share one image's features.
Those are the same numbers where the ResNet drops no paths: batch means and variances do not change when every image occurs twice (the
unbiased running variance of n values a channel does, by a factor of (n - 1/2) / (n - 1)). Dropped paths are the same for both copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ofa_jax.config.schema import BlockConfig, LossConfig, RowBlock, RunConfig
from ofa_jax.data.batch import Block
from ofa_jax.models import ofa
from ofa_jax.models.bits import with_bits
from ofa_jax.models.layers import fold_key, row_keys, split_key
from ofa_jax.parallel import layout
from ofa_jax.train.answers import ClosedSet, closed_set, noisy, take_answers
from ofa_jax.train.loss import BlockLoss, LossReport, LossSums, block_loss, group_sums, total_loss
from ofa_jax.train.token_loss import COPIES, keep_mask
from ofa_jax.train.token_objective import TokenObjective, code_rows

STREAMS = ("pairs", "images", "text")  # running statistics pass through them in this order
GROUP_OF_STREAM = {"pairs": "pairs", "images": "images_text", "text": "images_text"}
# Folded into a block's key; groups of sequences after the first from the last on. Those of patches, dropout and noise into a row's.
PATCH_KEY, DROPOUT_KEY, IMAGE_KEY, GROUP_KEYS, NOISE_KEY = 0, 1, 2, 3, 2


class Pretraining(TokenObjective):
    """The whole model on OFA's tasks; an `Objective`."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.graphdef = jax.eval_shape(self._create, jax.random.key(0))[0]
        self.answers = closed_set(config)

    def _create(self, key: jax.Array) -> tuple[nnx.GraphDef, nnx.State]:
        return ofa.create(self.config.model, self.config.vocab, key, precision=self.config.precision)

    def init(self, key: jax.Array) -> tuple[nnx.State, Any]:
        return self._create(key)[1], ofa.init_stats(self.config.model, precision=self.config.precision)

    def num_params(self, params: nnx.State) -> int:
        return ofa.num_params(params, self.config.vocab)

    def counts(self, blocks: dict[str, Block]) -> dict[str, jax.Array]:
        copies = COPIES if self.config.loss.r_drop_alpha else 1
        counts: dict[str, jax.Array] = {}
        for config in self.config.data.row_blocks:
            group = GROUP_OF_STREAM[config.stream]
            for block in sequence_groups(config, blocks[config.name]):
                tokens = copies * jnp.sum(keep_mask(block.target_ids, block.task_ids))
                counts[group] = counts.get(group, jnp.zeros((), tokens.dtype)) + tokens
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
        loss, (stats, groups) = batch_loss(
            params, stats, blocks, key, graphdef=self.graphdef, config=self.config, num_tasks=num_tasks, step=step, counts=counts,
            answers=self.answers,
        )  # fmt: skip
        return loss, LossReport(stats, groups, {})


def sample_patches(keys: jax.Array, *, num_patches: int, keep: int) -> jax.Array:
    """Returns int32 [Q, keep]: for each of the keys [Q] `keep` different patch indices below `num_patches`, uniform, in ascending order."""
    scores = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys)
    return jnp.sort(jax.lax.top_k(scores, keep)[1].astype(jnp.int32), axis=1)


def batch_loss(
    params: Any,
    stats: Any,
    blocks: dict[str, Block],
    key: jax.Array | None,
    *,
    graphdef: Any,
    config: RunConfig,
    num_tasks: int,
    step: jax.Array | int = 0,
    counts: dict[str, jax.Array] | None = None,
    answers: ClosedSet | None = None,
) -> tuple[jax.Array, tuple[Any, dict[str, LossSums]]]:
    """Returns (L, (new running statistics, sums by group)) of one global batch, or with `counts` of a part of one (`total_loss`).

    key: of this data step; None means no dropout, all patches, no update of the statistics and, of the loss's options, the constraint
    range alone (evaluation of the loss). step: int [], updates made before this one. answers: of `config.loss.answers`.
    """
    plain = LossConfig(logit_chunk=config.loss.logit_chunk, constraint_range=config.loss.constraint_range)
    loss_config = plain if key is None else config.loss
    parts: dict[str, list[BlockLoss]] = {}
    for stream in STREAMS:
        members = [(i, b) for i, b in enumerate(config.data.row_blocks) if b.stream == stream]
        features, stats = _embed_stream(nnx.merge(graphdef, layout.narrow(params)), stats, members, blocks, key)
        for index, block_config in members:
            block_key = None if key is None else jax.random.fold_in(key, index)
            for place, block in enumerate(sequence_groups(block_config, blocks[block_config.name])):
                group_key = block_key if block_key is None or not place else jax.random.fold_in(block_key, GROUP_KEYS + place)
                if loss_config.r_drop_alpha:
                    block = repeat_sequences(block)
                narrow = nnx.merge(graphdef, layout.narrow(params))
                if loss_config.decoder_noise and group_key is not None:
                    keys = fold_key(row_keys(group_key, block.source_ids.shape[0]), NOISE_KEY)
                    noise = noisy(block.decoder_ids, keys, share=loss_config.decoder_noise, num_text=config.vocab.num_text)
                    block = block._replace(decoder_ids=noise)
                hidden = _decode_block(narrow, block_config, block, features.get(block_config.name), group_key)
                target_ids = block.target_ids
                if block_config.prompt_len:
                    hidden, target_ids = take_answers(hidden, target_ids, length=block_config.target_len)
                given: dict[str, Any] = {
                    "target_ids": target_ids,
                    "confidence": block.confidence,
                    "task_ids": block.task_ids,
                    "num_tasks": num_tasks,
                    "vocab_size": config.vocab.size,
                    "config": loss_config,
                }
                if answers is None:
                    part = block_loss(hidden, logits_of=narrow.logits, **given)
                else:
                    part = closed_loss(hidden, narrow, answers, **given)
                parts.setdefault(GROUP_OF_STREAM[stream], []).append(part)
    groups = {name: group_sums(members, config=loss_config, step=step) for name, members in parts.items()}
    loss, _ = total_loss(groups, counts)
    return loss, (stats, groups)


def closed_loss(hidden: jax.Array, model: Any, answers: ClosedSet, **given: Any) -> BlockLoss:
    """Returns `block_loss` of hidden [Q, T, D] where targets are `answers`: its logits are of the ids that occur in them alone."""
    rows = model.rows_of(answers.ids)  # once, however many chunks of logits there are
    with layout.whole_vocab():
        return block_loss(
            hidden,
            logits_of=lambda hidden: model.logits_among(hidden, rows),
            allowed=answers.allowed(given["target_ids"]),
            columns_of=answers.columns,
            **given,
        )


def sequence_groups(config: RowBlock, block: Block) -> list[Block]:
    """Returns the sequences of a block that run together: all of them, or in a length class the first of every pair, the second, ..., each
    at its own static length. Rows and images stay as they are."""
    places = config.num_places
    if places == 1:
        return [block]
    rows = block.source_ids.shape[0] // places

    def at(values: jax.Array, place: int, length: int | None = None) -> jax.Array:
        grouped = values.reshape(rows, places, *values.shape[1:])[:, place]
        return grouped if length is None else grouped[:, :length]

    groups = []
    for place in range(places):
        source_len, target_len = config.lens_of(place)
        groups.append(
            block._replace(
                source_ids=at(block.source_ids, place, source_len),
                decoder_ids=at(block.decoder_ids, place, target_len),
                target_ids=at(block.target_ids, place, target_len),
                **{name: at(getattr(block, name), place) for name in ("confidence", "code_mask", "task_ids")},
            )
        )
    return groups


def repeat_sequences(block: Block) -> Block:
    """Returns the block with every sequence `COPIES` times in a row, which its picture still owns; rows and images stay as they are."""
    names = ("source_ids", "decoder_ids", "target_ids", "confidence", "code_mask", "task_ids")
    return block._replace(**{name: jnp.repeat(getattr(block, name), COPIES, axis=0) for name in names})


def _embed_stream(
    model: Any, stats: Any, members: Sequence[tuple[int, BlockConfig]], blocks: dict[str, Block], key: jax.Array | None
) -> tuple[dict[str, jax.Array], Any]:
    """Returns (features [R, P, C] by block name, statistics after the stream).

    Blocks of one stream differ in text length only, so their pictures go through the image front together: the stream's statistics
    are those of all its images, and the running ones are updated once.
    """
    members = [(i, b) for i, b in members if b.image_px]
    if not members:
        return {}, stats
    arrays = [blocks[b.name] for _, b in members]
    images = arrays[0].images if len(arrays) == 1 else jnp.concatenate([a.images for a in arrays])
    holes = arrays[0].hole_mask if len(arrays) == 1 else jnp.concatenate([a.hole_mask for a in arrays])
    image_key = None if key is None else jax.random.fold_in(jax.random.fold_in(key, members[0][0]), IMAGE_KEY)
    if image_key is not None:
        # A picture's keys go by its place in its own block.
        parts = [row_keys(jax.random.fold_in(image_key, place), a.images.shape[0]) for place, a in enumerate(arrays)]
        image_key = jnp.concatenate(parts)
    features, stats = model.embed_images(images, holes, stats=stats, train=key is not None, key=image_key)
    out, start = {}, 0
    for (_, block_config), block in zip(members, arrays, strict=True):
        rows = block.images.shape[0]
        out[block_config.name] = features[start : start + rows]
        start += rows
    return out, stats


def _decode_block(model: Any, config: BlockConfig, block: Block, features: jax.Array | None, key: jax.Array | None) -> jax.Array:
    """Returns the decoder's output, [Q, T, D]: each image's features serve all sequences of its row. key: one, of the block."""
    key = None if key is None else row_keys(key, block.source_ids.shape[0])
    patch_ids = image_mask = None
    if features is not None:
        image_mask = block.image_mask
        if config.num_patches and key is not None:
            patch_ids = sample_patches(fold_key(key, PATCH_KEY), num_patches=features.shape[1], keep=config.num_patches)
    key = None if key is None else with_bits(fold_key(key, DROPOUT_KEY), model.config.dropout_bits)
    encoder_key, decoder_key = split_key(key, 2)
    encoded = model.encode(block.source_ids, features=features, patch_ids=patch_ids, image_mask=image_mask, key=encoder_key)
    return model.decode(encoded, block.decoder_ids, block.code_mask, key=decoder_key, code_rows=code_rows(config))
