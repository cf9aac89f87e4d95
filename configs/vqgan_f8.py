"""The f=8 VQGAN with 8,192 codes that OFA reads and writes pictures with, trained from scratch: `vqgan_gumbel_f8` of taming-transformers.

Structure and divergence weight are those of the published configuration, which says nothing else of its training (its loss is a dummy).
Learning rate (4.5e-6 a picture of the batch), betas and the discriminator's weight are those of taming-transformers' example for one's own
data (`configs/custom_vqgan.yaml`). All else is our choice and was never run to its end: batch, schedule, bf16, temperature, revival, the
average of the weights, pictures of OFA's pretraining sets. Give LPIPS's weights with `--config.loss.perceptual=lpips_vgg.npz`; without them
edges are compared.
"""

from __future__ import annotations

from configs.recipes.vqgan import adam, pictures
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import CheckpointConfig, DataConfig, VQGANConfig, VQGANEvalConfig, VQGANLossConfig, VQGANRunConfig

ROWS = 256


def get_config(arg: str = "") -> VQGANRunConfig:
    """Returns the run; `arg`: `debug` for seconds on generated data, `steps=N`."""
    run = VQGANRunConfig(
        name="vqgan_f8",
        model=VQGANConfig(),
        data=DataConfig(
            dir="data/pretrain",
            blocks=pictures("openimages", "cc12m", "yfcc", "imagenet_21k", rows=ROWS, image_px=256, augment="random_resize_crop"),
            num_workers=8,
        ),
        loss=VQGANLossConfig(quantizer_weight=1e-8, temperature=(1.0, 0.0625), discriminator_start=30_000, revive_every=1_000),
        optimizer=adam(4.5e-6 * ROWS, ema_decay=0.9999),
        checkpoint=CheckpointConfig(every_steps=5_000, every_s=1_800.0, keep=3),
        eval=VQGANEvalConfig(dataset="openimages", split="validation", limit=1_024, image_px=256, every_steps=5_000),
        steps=250_000,
        precision="bf16",
    )
    return with_arg(run, arg)
