"""Text-to-image on composed scenes: the 16 x 16 codes of a picture of 64 px from its caption (stage 1, cross-entropy over codes alone).

python launch/prepare.py codes --vqgan=runs/quickstart_vqgan --dataset=scenes --image_px=64 --area=whole

Pictures are judged by what the quickstart's model, which has never seen one of them, says that they show.
"""

from __future__ import annotations

import dataclasses

from configs.recipes.laptop import START, laptop
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import BlockConfig, EvalSetConfig, LossConfig, PictureJudgesConfig, RunConfig, SourceConfig

CODES = (2_000, 2_128)  # ids of the quickstart's 128 image codes
SPLITS = ("validation", "unseen_composition")
SIDE = 16  # codes of a side
SOURCE = (SourceConfig("scenes", "painting"),)


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: what every config takes (`debug`, `steps=N`)."""
    config = laptop(
        "painting",
        block=BlockConfig("paintings", "text", rows=24, source_len=32, target_len=SIDE**2 + 1, sources=SOURCE),
        sets=tuple(EvalSetConfig(f"paintings/{split}", "image_generation", "scenes", split, limit=400) for split in SPLITS),
        steps=2_000,
        learning_rate=1.5e-3,
        loss=LossConfig(constraint_range=CODES),
        model={"code_image_px": 4 * SIDE, "without": ("pictures",)},
        frozen=(),
        decode=("drawn:sample,beam=1,top_k=32,tasks=image_generation",),
    )
    judged = dataclasses.replace(config.eval, pictures=PictureJudgesConfig(captioner=f"runs/{START}"))
    return with_arg(dataclasses.replace(config, eval=judged), arg)
