"""COCO captions by CIDEr as a reward (stage 2), from the best checkpoint of stage 1 (`coco_caption.py`): 3 epochs over the pictures.

Source: run_scripts/caption/train_caption_stage2{,_base}.sh: no dropout, no dropped paths, rate 1e-5 to 2e-7 (base: to 0), 64 pictures with
five beams each, token embeddings stay, batch norm by the batch. The README calls the stage unstable: a larger batch, a smaller rate or
`--config.model.image_norm=frozen` help. 150.7 CIDEr for large in the paper's table, 146.7 for base. Words are weighed by
`python launch/prepare.py frequencies --dataset=coco_captions`.
"""

from __future__ import annotations

import dataclasses

from configs.finetune.coco_caption import BEAM
from configs.recipes.finetuning import DIR, LIKE_BASE, finetuning, pairs, sized, updates
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import EvalSetConfig, RewardConfig, RunConfig

PICTURES = 113_287  # of train and restval, one a row of the official file
BEAMS = 5


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `size=base` and what every config takes."""
    chosen, rest = sized(arg)
    base, rows = chosen["size"] in LIKE_BASE, 64
    block = pairs("short_caption", "coco_captions", rows=rows, source_len=16, target_len=40, image_px=480)
    config = finetuning(
        "coco_caption_reward",
        chosen["size"],
        block=dataclasses.replace(block, pairs_per_image=BEAMS),
        sets=tuple(EvalSetConfig(f"coco/{split}", "short_captioning", "coco_captions", split) for split in ("validation", "test")),
        steps=updates(PICTURES, epochs=3, rows=rows),
        learning_rate=1e-5,
        warmup=0.06,
        drop_path=0.0,
        decode=(BEAM,),
        best="eval/cider/coco/validation",
        frozen=("embedding",),
        model={"dropout": 0.0},
        start=f"runs/coco_caption_{chosen['size']}",
    )
    return with_arg(
        dataclasses.replace(
            config,
            optimizer=dataclasses.replace(config.optimizer, end_learning_rate=0.0 if base else 2e-7),
            reward=(RewardConfig(frequencies=f"{DIR}/coco_captions/frequencies-train.json"),),
            guard=dataclasses.replace(config.guard, loss_factor=0.0),  # the loss is about zero, and may be negative
        ),
        rest,
    )
