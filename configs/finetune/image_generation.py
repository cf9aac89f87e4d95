"""Text-to-image, stage 1: the 32 x 32 codes of COCO's pictures of 256 px by cross-entropy over codes alone.

Source: run_scripts/image_gen/train_image_gen_stage1_distributed.sh (large). CLIP score about 32.5 after this stage (README); the paper has
34.4 after the second, FID 10.5, IS 31.1.
"""

from __future__ import annotations

from configs.recipes.finetuning import finetuning, sized, texts
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RunConfig

UPDATES = 40_000
CODES = (50_265, 58_457)  # ids of the 8,192 image codes


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `size=base` and what every config takes."""
    chosen, rest = sized(arg)
    config = finetuning(
        "image_generation",
        chosen["size"],
        block=texts("painting", "coco_captions", rows=512, source_len=80, target_len=1_025),
        sets=(EvalSetConfig("paintings/validation", "image_generation", "coco_captions", "validation", limit=200),),
        steps=UPDATES,
        learning_rate=1e-3,
        warmup=2_000 / UPDATES,
        drop_path=0.1,
        loss=LossConfig(constraint_range=CODES, logit_chunk=128),
        model={"code_image_px": 256, "without": ("pictures",)},
        best="eval/code_accuracy/paintings/validation",
    )
    return with_arg(config, rest)
