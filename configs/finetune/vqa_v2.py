"""VQAv2 with the decoder reading the question, answers of a closed set, and the average of the weights.

Source: run_scripts/vqa/train_vqa_distributed.sh and train_vqa_base_distributed.sh: large 40,000 updates with 1,000 of warm-up, base 15
epochs with 4 %. `loss.answers` is a file of the 3,129 answers, one a line (the keys of the official trainval_ans2label.pkl); it lies beside
the data, and the data are prepared with it (`--option=answers_file`), because a target outside of it stops the run. Every answer of a
question that is in it is learned, with its weight. Test-std of large: 80.02 (the released checkpoint) to 80.7 (the paper's table).

With `objects` in the argument, questions have VinVL's labels behind them, 30 at most, as the scripts have (`--add-object`,
`max_object_length`): 0.1 points by OFA-Sys/OFA issue 189. Data are OFA's own tables then (`ofa_vqa`), which hold the labels. A model that
was trained with them needs them wherever it is asked: evaluation by this config adds them, an instruction that is typed has to end in
` object: {labels}` itself.
"""

from __future__ import annotations

import dataclasses

from configs.recipes.finetuning import DIR, LIKE_BASE, finetuning, pairs, sized
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RunConfig

ANSWERS = f"{DIR}/vqa_v2/answers.txt"
OBJECTS = 30
LARGE_UPDATES, LARGE_EPOCHS = 40_000, 12  # the script's updates are about twelve epochs (README), which gives an epoch's length


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `size=base`, `objects` and what every config takes."""
    words = arg.split(",")
    objects = OBJECTS if "objects" in words else 0
    chosen, rest = sized(",".join(word for word in words if word != "objects"))
    base = chosen["size"] in LIKE_BASE
    config = finetuning(
        "vqa_v2",
        chosen["size"],
        block=pairs("answer", "vqa_v2", rows=512, source_len=128 if objects else 64, target_len=12, image_px=480),
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
    return with_arg(dataclasses.replace(config, data=dataclasses.replace(config.data, question_objects=objects)), rest)
