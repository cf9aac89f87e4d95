"""What OFA's pretraining runs share: one optimiser, one schedule, one mixture. `configs/ofa_<size>.py` give the rest.

Where the paper (arXiv 2202.03052) and the released scripts differ, the paper's value stands here, because the scripts are for
continued pretraining of a released checkpoint:

| value | paper | released script | here |
|---|---|---|---|
| peak learning rate | 2e-4 | 1e-4 | 2e-4 |
| length | at least 300,000 updates | 50 epochs | 300,000 |
| batch | 2,048 pairs + 256 + 256 + 512 | 4 pairs a GPU, for demonstration | the paper's |
| precision | mixed | fp16 with a loss scale | bf16 compute, f32 state, no loss scale |

Both agree on AdamW with betas (0.9, 0.999), eps 1e-8 and decay 0.01 on all parameters, a linear warm-up of 1 % followed by linear decay
to 0, dropout 0.1, no attention dropout, stochastic depth 0.1 on encoder and decoder and none on the ResNet. Clipping at 5.0 and the
absence of label smoothing are the scripts'.
"""

from __future__ import annotations

from configs.mixtures.ofa_pretrain import blocks
from ofa_jax.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    EvalSetConfig,
    InitConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
)
from ofa_jax.config.sizes import SIZES


def pretraining(
    size: str,
    *,
    stage: int = 1,
    image_px: int,
    num_patches: int,
    learning_rate: float = 2e-4,
    steps: int = 300_000,
) -> RunConfig:
    """Returns one stage of the pretraining of `size`; `image_px` and `num_patches` are those of the pairs (0 patches: all)."""
    return RunConfig(
        name=f"ofa_{size}" if stage == 1 else f"ofa_{size}_stage{stage}",
        model=SIZES[size],
        data=DataConfig(dir="data/pretrain", blocks=blocks(pairs_px=image_px, num_patches=num_patches), num_workers=8, prefetch=4),
        # The logits of one chunk exist at a time: those of 264 text positions would take four times the memory of the pairs' 64.
        loss=LossConfig(label_smoothing=0.0, logit_chunk=64),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, warmup_fraction=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=5.0
        ),
        checkpoint=CheckpointConfig(every_steps=6_000, every_s=1_800.0, keep=3),
        eval=EvalConfig(
            sets=(
                EvalSetConfig("vqa/vqa_v2/validation", "vqa", "vqa_v2", "validation", limit=5_000),
                EvalSetConfig("captioning/coco_captions/validation", "captioning", "coco_captions", "validation", limit=5_000),
                EvalSetConfig("grounding/refcoco/validation", "grounding", "refcoco", "validation", limit=5_000),
            ),
            image_px=image_px,
        ),
        init=InitConfig(checkpoint=f"runs/ofa_{size}") if stage > 1 else InitConfig(),
        steps=steps,
        precision="bf16",
    )
