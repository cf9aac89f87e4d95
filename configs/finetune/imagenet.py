"""ImageNet-1K: the name of the class, of a closed set of 1,000.

Source: run_scripts/image_classify/train_imagenet_distributed.sh (large): 160,000 updates (32 epochs), 1,000 of warm-up. Top-1 of the
released recipe 85.0, of the paper 85.6. The script's pictures are normalised by ImageNet's mean and augmented by timm before RandAugment
(AutoAugment, random erasing); here they are cropped and flipped at random alone. The paper's mixup and cutmix are not in the released code.
"""

from __future__ import annotations

from configs.recipes.finetuning import DIR, finetuning, pairs, sized
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RunConfig

ANSWERS = f"{DIR}/imagenet/answers.txt"  # the 1,000 lines of Caffe's synset_words.txt without their numbers
UPDATES = 160_000
LONGEST = 33  # tokens of a name and EOS: those of the platypus; cut, a name would be none of the answers


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `size=base` and what every config takes."""
    chosen, rest = sized(arg)
    block = pairs("class_name", "imagenet", rows=256, source_len=16, target_len=LONGEST, image_px=480, augment="random_resize_crop")
    config = finetuning(
        "imagenet",
        chosen["size"],
        block=block,
        sets=(EvalSetConfig("imagenet/validation", "classification", "imagenet", "validation"),),
        steps=UPDATES,
        learning_rate=5e-5,
        warmup=1_000 / UPDATES,
        drop_path=0.1,
        loss=LossConfig(label_smoothing=0.1, answers=ANSWERS),
        decode=(f"all-candidate:score,answers={ANSWERS}",),
        best="eval/accuracy/imagenet/validation",
        frozen=("embedding",),
    )
    return with_arg(config, rest)
