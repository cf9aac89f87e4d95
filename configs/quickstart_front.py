"""The start of the quickstart: its image front learns, in about three minutes on two CPU cores, to name what pictures show.

OFA starts from an ImageNet ResNet; no such weights fit a front this narrow, so this run makes some from the quickstart's own training
data (`ofa_jax/train/picture_words.py`). The high learning rate suits a batch-normalised front and would not suit the Transformer.
"""

from __future__ import annotations

import dataclasses

from configs.quickstart import FRONT, quickstart
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import BlockConfig, EvalConfig, InitConfig, RunConfig, SourceConfig


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `debug` for seconds on generated data, `steps=N`."""
    config = quickstart(steps=1_400, name=FRONT)
    front = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, image_norm="batch"),
        objective="picture_words",
        data=dataclasses.replace(config.data, blocks=blocks()),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=4e-3, frozen=()),
        init=InitConfig(),
        eval=EvalConfig(),
        log_every=50,
    )
    return with_arg(front, arg)


def blocks() -> tuple[BlockConfig, ...]:
    """Returns the row blocks: shapes with the answers to eight of their questions, scenes with the boxes and labels of their objects."""
    shapes = (SourceConfig("easy_vqa", "question"),)
    scenes = (SourceConfig("scenes", "detection"),)
    return (
        BlockConfig("shapes", "pairs", rows=24, source_len=24, target_len=2, sources=shapes, image_px=64, pairs_per_image=8),
        BlockConfig("detection", "images", rows=24, source_len=10, target_len=22, sources=scenes, image_px=64),
    )
