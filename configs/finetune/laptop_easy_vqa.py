"""easy-VQA (https://github.com/vzhou842/easy-VQA) as VQA is fine-tuned: the decoder reads the question, answers of a closed set, eight
questions a picture. `python launch/prepare.py answers --data_dir=data/quickstart --dataset=easy_vqa` writes the 13 answers. About two
minutes on two CPU cores. The data set has no validation split: nothing is chosen by its test.
"""

from __future__ import annotations

from configs.recipes.laptop import DIR, laptop
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import BlockConfig, EvalSetConfig, LossConfig, RunConfig, SourceConfig

ANSWERS = f"{DIR}/easy_vqa/answers.txt"
SOURCE = (SourceConfig("easy_vqa", "answer"),)


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: what every config takes (`debug`, `steps=N`)."""
    config = laptop(
        "easy_vqa",
        block=BlockConfig("answer", "pairs", rows=16, source_len=24, target_len=4, sources=SOURCE, image_px=64, pairs_per_image=8),
        sets=(EvalSetConfig("easy_vqa/test", "answering", "easy_vqa", "test"),),
        steps=800,
        learning_rate=5e-4,
        loss=LossConfig(label_smoothing=0.1, answers=ANSWERS),
        decode=(f"all-candidate:score,answers={ANSWERS}",),
    )
    return with_arg(config, arg)
