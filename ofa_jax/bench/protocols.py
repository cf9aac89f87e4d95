"""The two works that training is measured on, as changes of a run's config.

- *Same work*, which programs that know one block can do too: sequences of one length, each with a picture of its own.
- *Pretraining step*: all streams of the run, so many times fewer rows, the pictures of pairs shared by their sequences.

Both keep the run's model, dropout, optimizer and clipping.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ofa_jax.config.debug import join_classes
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import BlockConfig, RunConfig


def same_work(config: RunConfig, *, rows: int, source_len: int, target_len: int, image_px: int, num_patches: int) -> RunConfig:
    """Returns the run with one block of `rows` sequences of `source_len` source and `target_len` target tokens, each with a picture of
    `image_px` pixels a side, of which `num_patches` patches are sampled (0: all); image_px 0: texts alone."""
    stream: Literal["images", "text"] = "images" if image_px else "text"
    block = BlockConfig(
        name="same_work", stream=stream, rows=rows, source_len=source_len, target_len=target_len, sources=(), image_px=image_px,
        num_patches=num_patches if image_px else 0,
    )  # fmt: skip
    return _with_blocks(config, (block,))


def pretraining_step(config: RunConfig, *, parts: int) -> RunConfig:
    """Returns the run with a batch of 1/`parts` of its rows, in all its blocks and length classes.

    Raises `ConfigError` where a block has too few rows.
    """
    blocks = []
    for block in config.data.blocks:
        if block.rows % parts:
            raise ConfigError(f"--parts: found {parts}, expected a divisor of the {block.rows} rows of block {block.name}")
        classes = join_classes(block.classes, parts)
        if any(part.rows % parts for part in classes):
            classes = ()
        classes = tuple(dataclasses.replace(part, rows=part.rows // parts) for part in classes)
        blocks.append(dataclasses.replace(block, rows=block.rows // parts, classes=classes))
    return _with_blocks(config, tuple(blocks))


def _with_blocks(config: RunConfig, blocks: tuple[BlockConfig, ...]) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, blocks=blocks))
