"""Captions of composed scenes by cross-entropy, stopped at update 300, long before it would learn no more: what a reward goes on from.

About a minute on two CPU cores; `laptop_caption_reward.py` is the second stage.
"""

from __future__ import annotations

from configs.recipes.laptop import laptop
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import BlockConfig, EvalSetConfig, LossConfig, RunConfig, SourceConfig

CAPTION_TOKENS = 24  # the longest has 21, and EOS
BEAM = "beam:beam,beam=5,max_len=20,no_repeat_ngram=3,tasks=short_captioning"
SOURCE = (SourceConfig("scenes", "short_caption"),)
SETS = tuple(EvalSetConfig(f"captions/{split}", "short_captioning", "scenes", split) for split in ("validation", "unseen_composition"))


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: what every config takes (`debug`, `steps=N`)."""
    config = laptop(
        "caption",
        block=BlockConfig("captions", "pairs", rows=32, source_len=12, target_len=CAPTION_TOKENS, sources=SOURCE, image_px=64),
        sets=SETS,
        steps=300,
        learning_rate=2e-4,
        loss=LossConfig(label_smoothing=0.1),
        decode=(BEAM,),
    )
    return with_arg(config, arg)
