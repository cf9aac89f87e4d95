"""What the objectives that read sequences of tokens have in common: optimizer and checks of a batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from ofa_jax.config.errors import UserError
from ofa_jax.config.rows import CODE_ROWS
from ofa_jax.config.schema import BlockConfig, RunConfig
from ofa_jax.data.batch import Batch
from ofa_jax.train.answers import ClosedSet
from ofa_jax.train.optimizer import check_named, make_optimizer
from ofa_jax.train.token_loss import check_targets, range_mask


class TokenObjective:
    """The parts of an `Objective` that `Pretraining` and `PictureWords` share."""

    config: RunConfig
    answers: ClosedSet | None = None
    by_rows = True

    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        return make_optimizer(self.config.optimizer, steps=self.config.steps, frozen_norms=self.config.model.image_norm == "frozen")

    def revise(self, params: Any, stats: Any, *, step: jax.Array) -> tuple[Any, Any]:
        del step
        return params, stats

    def num_examples(self, batch: Batch) -> int:
        return sum(len(block.task_ids) for block in batch.blocks.values())

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        raise NotImplementedError

    def check(self) -> None:
        check_streams(self.config)
        if self.config.optimizer.frozen or self.config.optimizer.trained:
            check_named(jax.eval_shape(self.init, jax.random.key(0))[0], self.config.optimizer)

    def check_batch(self, batch: Batch, *, num_hosts: int = 1) -> None:
        check_batch(batch, self.config, num_hosts=num_hosts)
        if self.answers is not None:
            for name, block in batch.blocks.items():
                self.answers.check(block.target_ids, where=f"batch {batch.data_step}, block {name}, target_ids")


def code_rows(config: BlockConfig) -> str:
    """Returns what a block's mixture says about its code masks before any data is seen: "none", "all" or "mixed"."""
    kinds = {source.row for source in config.sources}
    if kinds.isdisjoint(CODE_ROWS):
        return "none"
    return "all" if kinds.issubset(CODE_ROWS) else "mixed"


def check_streams(config: RunConfig) -> None:
    """Raises `UserError` when blocks of one stream differ in picture size, or when more patches are to be kept than there are."""
    px_of: dict[str, BlockConfig] = {}
    for block in config.data.row_blocks:
        field = f"data.blocks.{block.name}"
        first = px_of.setdefault(block.stream, block)
        if first.image_px != block.image_px:
            raise UserError(
                f"{field}.image_px: found {block.image_px}, expected {first.image_px} as in block {first.name} of the "
                f"same stream {block.stream}"
            )
        patches = (block.image_px // config.model.resnet.stride) ** 2
        if block.num_patches > patches:
            raise UserError(f"{field}.num_patches: found {block.num_patches}, expected at most {patches}, all patches")


def check_batch(batch: Batch, config: RunConfig, *, num_hosts: int = 1) -> None:
    """Raises `UserError` when a host's batch does not have the config's blocks and shapes, or holds an id outside the vocabulary, or a
    target outside `loss.constraint_range`."""
    expected_names = [b.name for b in config.data.row_blocks]
    if list(batch.blocks) != expected_names:
        raise UserError(f"batch {batch.data_step}: found blocks {list(batch.blocks)}, expected {expected_names}")
    for block_config in config.data.row_blocks:
        block = batch.blocks[block_config.name]
        where = f"batch {batch.data_step}, block {block_config.name}"
        rows = block_config.rows // num_hosts
        if block.elements.shape[0] != rows:
            raise UserError(f"{where}: found {block.elements.shape[0]} rows, expected {rows}")
        lengths = {"source_ids": block_config.source_len, "decoder_ids": block_config.decoder_len, "target_ids": block_config.decoder_len}
        for field, length in lengths.items():
            ids = getattr(block, field)
            if ids.ndim != 2 or ids.shape[1] != length or ids.shape[0] % max(rows, 1):
                raise UserError(f"{where}, {field}: found shape {ids.shape}, expected a multiple of {rows} sequences of {length} ids")
            low, high = int(np.min(ids)), int(np.max(ids))
            if low < 0 or high >= config.vocab.size:
                raise UserError(f"{where}, {field}: found id {low if low < 0 else high}, expected 0 to {config.vocab.size - 1}")
        if config.loss.constraint_range:
            allowed = range_mask(config.loss.constraint_range, num_ids=config.vocab.size)
            check_targets(block.target_ids, allowed, where=f"{where}, target_ids (loss.constraint_range={config.loss.constraint_range})")
        if code_rows(block_config) == "none" and block.code_mask.any():
            raise UserError(f"{where}, code_mask: found a target of image codes, expected none, as no row is of {', '.join(CODE_ROWS)}")
