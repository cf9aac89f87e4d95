"""Text-to-image, stage 2: five pictures a caption, rewarded by CLIP, from the last checkpoint of stage 1 (`image_generation.py`).

Source: run_scripts/image_gen/train_image_gen_stage2_distributed.sh (large): rate 1e-6 without warm-up, 5,000 updates of 32 captions, no
dropout, no dropped paths; draws of the 256 likeliest codes. The reward is a function of yours, 2.5 times the cosine of CLIP ViT-B/16's
embeddings of picture and caption, named by `clip=FILE.py:function` (`ofa_jax/metrics/clip_score.clip_reward` is its formula). CLIP score
about 34.0 after this stage (README), 34.4 in the paper.
"""

from __future__ import annotations

import dataclasses

from configs.finetune.image_generation import CODES
from configs.recipes.finetuning import finetuning, sized, texts
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RewardConfig, RunConfig

PICTURES = 5  # of a caption


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `clip=FILE.py:function` (default clip.py:reward), `size=base` and what every config takes."""
    chosen, rest = sized(arg, clip="clip.py:reward")
    block = texts("painting", "coco_captions", rows=32, source_len=80, target_len=1_025)
    config = finetuning(
        "image_generation_reward",
        chosen["size"],
        block=dataclasses.replace(block, pairs_per_image=PICTURES),
        sets=(EvalSetConfig("paintings/validation", "image_generation", "coco_captions", "validation", limit=200),),
        steps=5_000,
        learning_rate=1e-6,
        warmup=0.0,
        drop_path=0.0,
        loss=LossConfig(constraint_range=CODES, logit_chunk=128),
        model={"code_image_px": 256, "dropout": 0.0, "without": ("pictures",)},
        start=f"runs/image_generation_{chosen['size']}",
    )
    return with_arg(
        dataclasses.replace(
            config,
            reward=(RewardConfig(reward=chosen["clip"], method="sample", top_k=256),),
            guard=dataclasses.replace(config.guard, loss_factor=0.0),  # the loss is about zero, and may be negative
        ),
        rest,
    )
