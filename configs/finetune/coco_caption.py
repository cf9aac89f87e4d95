"""COCO captions by cross-entropy (stage 1; Karpathy's split): 2 epochs of large, 5 of base.

Source: run_scripts/caption/train_caption_stage1{,_base}.sh; the paper's table says 142.2 CIDEr for large and 138.2 for base, the README
about 139.5 on validation after large's script. drop_worst begins after 2,500 updates (large) and 6,000 (base). Token embeddings stay.
"""

from __future__ import annotations

from configs.recipes.finetuning import LIKE_BASE, finetuning, pairs, sized, updates
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RunConfig

TRAIN_CAPTIONS = 566_747  # of the 113,287 pictures of train and restval, one a row of the official file
BEAM = "beam:beam,beam=5,max_len=16,no_repeat_ngram=3"


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `size=base` and what every config takes (`debug`, `steps=N`)."""
    chosen, rest = sized(arg)
    base, rows = chosen["size"] in LIKE_BASE, 128
    config = finetuning(
        "coco_caption",
        chosen["size"],
        block=pairs("short_caption", "coco_captions", rows=rows, source_len=16, target_len=40, image_px=480),
        sets=(
            EvalSetConfig("coco/validation", "short_captioning", "coco_captions", "validation"),
            EvalSetConfig("coco/test", "short_captioning", "coco_captions", "test"),
        ),
        steps=updates(TRAIN_CAPTIONS, epochs=5 if base else 2, rows=rows),
        learning_rate=1e-5,
        warmup=0.06,
        drop_path=0.1,
        loss=LossConfig(label_smoothing=0.1, drop_worst=(0.2, 6_000 if base else 2_500)),
        decode=(BEAM,),
        best="eval/cider/coco/validation",
        frozen=("embedding",),
    )
    return with_arg(config, rest)
