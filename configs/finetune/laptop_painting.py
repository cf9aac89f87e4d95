"""Text-to-image on composed scenes: the 16 x 16 codes of a picture of 64 px from its caption (stage 1, cross-entropy over codes alone).

python launch/prepare.py codes --vqgan=runs/quickstart_vqgan --dataset=scenes --image_px=64 --area=whole
"""

from __future__ import annotations

from configs.recipes.laptop import laptop
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import BlockConfig, EvalSetConfig, LossConfig, RunConfig, SourceConfig

CODES = (2_000, 2_128)  # ids of the quickstart's 128 image codes
SIDE = 16  # codes of a side
SOURCE = (SourceConfig("scenes", "painting"),)


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: what every config takes (`debug`, `steps=N`)."""
    config = laptop(
        "painting",
        block=BlockConfig("paintings", "text", rows=32, source_len=32, target_len=SIDE**2 + 1, sources=SOURCE),
        sets=(EvalSetConfig("paintings/validation", "image_generation", "scenes", "validation", limit=200),),
        steps=3_000,
        learning_rate=1e-3,
        loss=LossConfig(constraint_range=CODES),
        model={"code_image_px": 4 * SIDE},
        frozen=(),
    )
    return with_arg(config, arg)
