"""What the VQGAN runs share: the optimizer of taming-transformers' training, pictures and nothing else."""

from __future__ import annotations

from ofa_jax.config.schema import BlockConfig, OptimizerConfig, SourceConfig


def adam(
    learning_rate: float, *, end_learning_rate: float | None = None, warmup_fraction: float = 0.0, ema_decay: float = 0.0
) -> OptimizerConfig:
    """Returns Adam with betas (0.5, 0.9), no decay, no clipping (taming-transformers, `VQModel.configure_optimizers`); a constant rate
    unless `end_learning_rate` says otherwise."""
    return OptimizerConfig(
        learning_rate=learning_rate,
        end_learning_rate=learning_rate if end_learning_rate is None else end_learning_rate,
        warmup_fraction=warmup_fraction,
        beta1=0.5,
        beta2=0.9,
        weight_decay=0.0,
        clip_norm=0.0,
        ema_decay=ema_decay,
    )


def pictures(*datasets: str, rows: int, image_px: int, augment: str) -> tuple[BlockConfig, ...]:
    """Returns one block of `rows` pictures of `image_px` from the datasets' training splits, all with the same weight."""
    sources = tuple(SourceConfig(dataset, "picture") for dataset in datasets)
    return (BlockConfig("pictures", "pictures", rows, 0, 0, sources, image_px=image_px, augment=augment),)  # type: ignore[arg-type]
