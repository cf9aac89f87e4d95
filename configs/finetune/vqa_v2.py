"""VQAv2 with the decoder reading the question, answers of a closed set, and the average of the weights.

Source: run_scripts/vqa/train_vqa_distributed.sh and train_vqa_base_distributed.sh: large 40,000 updates with 1,000 of warm-up, base 15
epochs with 4 %. `loss.answers` is a file of the 3,129 answers, one a line (the keys of the official trainval_ans2label.pkl); it lies beside
the data. VinVL's object labels, which the official questions have behind them and which bring 0.1 points, are left out. Test-std of large:
80.02 (the released checkpoint) to 80.7 (the paper's table).
"""

from __future__ import annotations

from configs.recipes.finetuning import DIR, LIKE_BASE, finetuning, pairs, sized
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RunConfig

ANSWERS = f"{DIR}/vqa_v2/answers.txt"
LARGE_UPDATES, LARGE_EPOCHS = 40_000, 12  # the script's updates are about twelve epochs (README), which gives an epoch's length


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `size=base` and what every config takes."""
    chosen, rest = sized(arg)
    base = chosen["size"] in LIKE_BASE
    config = finetuning(
        "vqa_v2",
        chosen["size"],
        block=pairs("answer", "vqa_v2", rows=512, source_len=64, target_len=12, image_px=480),
        sets=(EvalSetConfig("vqa_v2/validation", "answering", "vqa_v2", "validation", limit=10_000),),
        steps=LARGE_UPDATES * 15 // LARGE_EPOCHS if base else LARGE_UPDATES,
        learning_rate=5e-5,
        warmup=0.04 if base else 1_000 / LARGE_UPDATES,
        drop_path=0.1 if base else 0.2,
        loss=LossConfig(label_smoothing=0.1, answers=ANSWERS),
        decode=(f"all-candidate:score,answers={ANSWERS}",),
        best="eval/accuracy/vqa_v2/validation",
        frozen=("embedding",),
        ema=0.9999,
    )
    return with_arg(config, rest)
