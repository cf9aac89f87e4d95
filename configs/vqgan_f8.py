"""The f=8 VQGAN with 8,192 codes that OFA reads and writes pictures with, trained from scratch: `vqgan_gumbel_f8` of taming-transformers.

Structure, divergence weight, discriminator and optimizer are those of the published configuration (configs/openimages/vqgan gumbel,
arXiv 2012.09841): learning rate 4.5e-6 a picture of the batch. Ours: 256 pictures a batch, bf16, an average of the weights, and pictures of
OFA's own pretraining sets. Give LPIPS's weights with `--config.loss.perceptual=lpips_vgg.npz`; without them edges are compared.
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
