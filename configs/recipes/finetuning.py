"""What OFA's fine-tuning runs share. `configs/finetune/<task>.py` give the rest: one file a row of the paper's tables.

Numbers are those of the released scripts (`run_scripts/` of OFA-Sys/OFA) for the sizes that have one, large and base; another size takes
the nearer of the two, which nobody has published. All have AdamW with decay 0.01, clipping at 1.0, a linear warm-up, a linear decay to 0,
dropout 0.1 and no attention dropout. The scripts compute in fp16 with a loss scale; here bf16. Epochs of the scripts are
counted in examples (an expression, a caption, an answer) and become updates of the global batch.

A run begins with `runs/ofa_<size>`, where `launch/convert.py import` puts the released weights, or a pretraining of one's own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import split_arg
from ofa_jax.config.schema import (
    BlockConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    EvalSetConfig,
    InitConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
)
from ofa_jax.config.sizes import SIZES

DIR = "data/finetune"
TEXT_ALONE = {"without": ("pictures", "codes")}  # of the model: texts are read and written, no parts of pictures are held
LIKE_BASE = ("tiny", "medium", "base")  # sizes that take base's numbers


def finetuning(
    task: str,
    size: str,
    *,
    block: BlockConfig,
    sets: tuple[EvalSetConfig, ...],
    steps: int,
    learning_rate: float,
    warmup: float,
    drop_path: float,
    loss: LossConfig | None = None,
    decode: tuple[str, ...] = (),
    best: str = "",
    frozen: tuple[str, ...] = (),
    ema: float = 0.0,
    model: dict[str, Any] | None = None,
    start: str = "",
) -> RunConfig:
    """Returns the fine-tuning of `size` on the one `block`. warmup: share of the updates. best: the number that checkpoints are kept by.
    start: the run whose parameters it begins with; empty: the pretrained one."""
    changes = {"encoder_drop_path_rate": drop_path, "decoder_drop_path_rate": drop_path} | (model or {})
    return RunConfig(
        name=f"{task}_{size}",
        model=dataclasses.replace(SIZES[size], **changes),
        data=DataConfig(dir=DIR, blocks=(block,), num_workers=8),
        loss=loss or LossConfig(),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, warmup_fraction=warmup, clip_norm=1.0, weight_decay=0.01, frozen=frozen, ema_decay=ema
        ),
        checkpoint=CheckpointConfig(every_steps=500, every_s=0.0, keep=2, keep_best=1 if best else 0, best_metric=best),
        eval=EvalConfig(
            sets=sets,
            decode=decode,
            source_len=block.source_len,
            target_len=block.target_len,
            image_px=block.image_px or 384,
            every_steps=500,
        ),
        init=InitConfig(checkpoint=start or f"runs/ofa_{size}"),
        steps=steps,
        precision="bf16",
    )


def pairs(row: str, dataset: str, *, rows: int, source_len: int, target_len: int, image_px: int, augment: Any = "resize") -> BlockConfig:
    """Returns a block of `rows` pictures with a sequence each."""
    sources = (SourceConfig(dataset, row),)  # type: ignore[arg-type]
    return BlockConfig(row, "pairs", rows, source_len, target_len, sources, image_px=image_px, augment=augment)


def texts(row: str, dataset: str, *, rows: int, source_len: int, target_len: int) -> BlockConfig:
    """Returns a block of `rows` sequences without a picture."""
    return BlockConfig(row, "text", rows, source_len, target_len, (SourceConfig(dataset, row),))  # type: ignore[arg-type]


def updates(examples: int, *, epochs: float, rows: int) -> int:
    """Returns the updates that `epochs` passes over `examples` take in batches of `rows`."""
    return round(epochs * examples / rows)


def sized(arg: str, *, size: str = "large", **others: str) -> tuple[dict[str, str], str]:
    """Returns the options of a fine-tuning config's argument (`size=base,data=refcoco_plus`) by name, and what is left for `with_arg`.

    Raises ConfigError for a size that there is not.
    """
    chosen, rest = split_arg(arg, size=size, **others)
    if chosen["size"] not in SIZES:
        raise ConfigError(f"config argument {arg!r}: size: found {chosen['size']}, expected one of {', '.join(SIZES)}")
    return chosen, rest


__all__ = ["DIR", "LIKE_BASE", "TEXT_ALONE", "finetuning", "pairs", "sized", "texts", "updates"]
