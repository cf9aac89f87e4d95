"""What the fine-tunings share that two CPU cores do in minutes, on the quickstart's own data: `configs/finetune/laptop_<task>.py`.

They begin with `runs/quickstart_long` (`make quickstart CONFIG=configs/quickstart_long.py`). Their numbers are ours, but for what the
paper's recipes share: clipping at 1.0, decay 0.01, a linear warm-up of 6 %, a linear decay to 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from configs.quickstart import DIR, quickstart
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import (
    BlockConfig,
    CheckpointConfig,
    EvalConfig,
    EvalSetConfig,
    InitConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
)

START = "quickstart_long"
# Light fine-tuning: what each adds to the model and the parameters that learn (in OFA's scripts prompts and adapters are 100, here 32).
LIGHT: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lora": ({"lora_rank": 8}, ("**/lora",)),
    "adapter": ({"adapter_width": 32}, ("**/adapter",)),
    "prompt": ({"prompt_lens": (32, 32)}, ("*/prompt",)),
    "bitfit": ({}, ("**/*norm/bias", "**/ffn/*/bias")),
}


def laptop(
    name: str,
    *,
    block: BlockConfig,
    sets: tuple[EvalSetConfig, ...],
    steps: int,
    learning_rate: float,
    loss: LossConfig | None = None,
    decode: tuple[str, ...] = (),
    frozen: tuple[str, ...] = ("resnet",),
    ema: float = 0.0,
    model: dict[str, Any] | None = None,
    start: str = START,
) -> RunConfig:
    """Returns the fine-tuning on the one `block`. start: the run whose parameters it begins with."""
    config = quickstart(steps=steps, name=f"laptop_{name}")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **(model or {})),
        data=dataclasses.replace(config.data, blocks=(block,), write_digests=False),
        loss=loss or LossConfig(),
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_fraction=0.06, clip_norm=1.0, frozen=frozen, ema_decay=ema),
        checkpoint=CheckpointConfig(every_steps=500, every_s=0.0, keep=1),
        eval=EvalConfig(sets=sets, batch_rows=64, source_len=block.source_len, target_len=block.target_len, image_px=64, decode=decode),
        init=InitConfig(checkpoint=f"runs/{start}"),
    )


def lightened(config: RunConfig, method: str, *, learning_rate: float) -> RunConfig:
    """Returns the run with all of the model as it is but what `method` of `LIGHT` trains; checkpoints hold that alone. "" changes nothing.

    Raises ConfigError for a method that there is not.
    """
    if not method:
        return config
    if method not in LIGHT:
        raise ConfigError(f"config argument light={method}: found {method}, expected one of {', '.join(LIGHT)}")
    added, trained = LIGHT[method]
    return dataclasses.replace(
        config,
        name=f"{config.name}_{method}",
        model=dataclasses.replace(config.model, **added),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=learning_rate, frozen=(), trained=trained),
        checkpoint=dataclasses.replace(config.checkpoint, content="trained"),
    )


__all__ = ["DIR", "START", "laptop", "lightened"]
