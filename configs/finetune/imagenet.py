"""ImageNet-1K: the name of the class, of a closed set.

Source: run_scripts/image_classify/train_imagenet_distributed.sh (large): 160,000 updates (32 epochs), 1,000 of warm-up, pictures normalised
by ImageNet's mean and deviation. Its loader (`data/cv_data/image_classify_dataset.py`) crops and mirrors at random and applies timm's
`rand-m9-mstd0.5-inc1`, OFA's RandAugment and random erasing: all of `augment="imagenet"`. Evaluation squashes pictures to 480 px. Top-1 of
the released recipe 85.0, of the paper 85.6, whose mixup and cutmix are not in the released code and not here.

Names are the lines of Caffe's synset_words.txt. Two of the 1,000 classes, the bird n02012849 and the machine n03126707, are both "crane"
there (two others, "maillot" and "maillot, tank suit", differ), so the closed set has 999 names, each on one line: a line twice is an error,
in training and in evaluation. Top-1 is by name, as in the official evaluation, which compares strings: one answer is right for the 100
pictures of both classes, where a classifier that had to choose between two of one name would lose 50 of the 50,000, 0.1 points.
"""

from __future__ import annotations

from configs.recipes.finetuning import DIR, finetuning, pairs, sized
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RunConfig

ANSWERS = f"{DIR}/imagenet/answers.txt"  # the lines of Caffe's synset_words.txt without their numbers, each once
UPDATES = 160_000
LONGEST = 33  # tokens of a name and EOS: those of the platypus; cut, a name would be none of the answers


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `size=base` and what every config takes."""
    chosen, rest = sized(arg)
    block = pairs("class_name", "imagenet", rows=256, source_len=16, target_len=LONGEST, image_px=480, augment="imagenet")
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
        model={"pixel_scale": "imagenet"},
    )
    return with_arg(config, rest)
