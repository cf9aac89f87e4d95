"""Referring expressions of composed scenes, by beam search over four bins as for RefCOCO, judged on compositions that training never shows.

Four minutes or so on two CPU cores.
"""

from __future__ import annotations

from configs.recipes.laptop import laptop
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import BlockConfig, EvalSetConfig, RunConfig, SourceConfig

SPLITS = ("validation", "seen_composition", "unseen_composition")
SOURCE = (SourceConfig("scenes", "referring"),)


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: what every config takes (`debug`, `steps=N`)."""
    config = laptop(
        "grounding",
        block=BlockConfig("referring", "pairs", rows=32, source_len=26, target_len=5, sources=SOURCE, image_px=64, pairs_per_image=4),
        sets=tuple(EvalSetConfig(f"grounding/{split}", "grounding", "scenes", split) for split in SPLITS),
        steps=1_500,
        learning_rate=5e-4,
        decode=("beam:beam,beam=5,min_len=4,max_len=4",),
    )
    return with_arg(config, arg)
