"""Fashion-MNIST: the name of what a picture shows, of a closed set of ten, as ImageNet is learned. All is fine-tuned, or with `light=lora`,
`adapter`, `prompt` or `bitfit` a small part: then the image front stays too, and checkpoints hold what is trained.

    python launch/prepare.py build fashion_mnist --source=/usr/share/datasets/fashion-mnist --data_dir=data/quickstart
    python launch/prepare.py answers --data_dir=data/quickstart --dataset=fashion_mnist
"""

from __future__ import annotations

from configs.recipes.laptop import DIR, laptop, lightened
from ofa_jax.config.debug import with_arg
from ofa_jax.config.load import split_arg
from ofa_jax.config.schema import BlockConfig, EvalSetConfig, LossConfig, RunConfig, SourceConfig

ANSWERS = f"{DIR}/fashion_mnist/answers.txt"
SOURCE = (SourceConfig("fashion_mnist", "class_name"),)


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `light=METHOD` and what every config takes (`debug`, `steps=N`)."""
    chosen, rest = split_arg(arg, light="")
    config = laptop(
        "fashion_mnist",
        block=BlockConfig("names", "pairs", rows=64, source_len=12, target_len=10, sources=SOURCE, image_px=64),
        sets=tuple(EvalSetConfig(f"fashion_mnist/{split}", "classification", "fashion_mnist", split) for split in ("validation", "test")),
        steps=2_000,
        learning_rate=1e-3,
        frozen=(),
        loss=LossConfig(label_smoothing=0.1, answers=ANSWERS),
        decode=(f"all-candidate:score,answers={ANSWERS}",),
    )
    return with_arg(lightened(config, chosen["light"], learning_rate=5e-3), rest)
