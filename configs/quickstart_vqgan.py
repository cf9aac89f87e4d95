"""A small VQGAN (f=4, 128 codes) on the quickstart's scenes, a minute or two on two CPU cores: the codes of its infilling.

It sees squares of 32 px, the side that infilling hides; a picture has codes of any side.
"""

from __future__ import annotations

import dataclasses

from configs.recipes.vqgan import adam, pictures
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import CheckpointConfig, DataConfig, VQGANConfig, VQGANEvalConfig, VQGANLossConfig, VQGANRunConfig

DIR = "data/quickstart"
NUM_CODES = 128


def get_config(arg: str = "") -> VQGANRunConfig:
    """Returns the run; `arg`: `debug` for seconds on generated data, `steps=N`."""
    return with_arg(small_vqgan("quickstart_vqgan", steps=500), arg)


def small_vqgan(name: str, *, steps: int) -> VQGANRunConfig:
    """Returns the run of `steps` updates."""
    return VQGANRunConfig(
        name=name,
        model=VQGANConfig(
            width=16,
            multiples=(1, 2, 4),
            num_blocks=1,
            attention_levels=(),
            latent_width=32,
            num_codes=NUM_CODES,
            code_width=16,
            quantizer="nearest",
            norm_groups=1,
            norm_over="pixel",
            convolution="xla",
        ),
        data=DataConfig(dir=DIR, blocks=pictures("scenes", rows=16, image_px=32, augment="random_crop"), prefetch=4),
        loss=VQGANLossConfig(
            perceptual_weight=0.2, quantizer_weight=1.0, discriminator_weight=0.0, quantizer_start_fraction=0.1, revive_every=20
        ),
        # Steadier moments than taming's (0.5, 0.9), which suit a game of two sides: here nobody judges.
        optimizer=dataclasses.replace(
            adam(2e-3, end_learning_rate=0.0, warmup_fraction=0.05, ema_decay=0.99), beta1=0.9, beta2=0.99, clip_norm=1.0
        ),
        checkpoint=CheckpointConfig(every_steps=500, every_s=0.0, keep=1),
        eval=VQGANEvalConfig(dataset="scenes", split="validation", limit=256, image_px=64, batch_rows=32),
        steps=steps,
        log_every=20,
    )
