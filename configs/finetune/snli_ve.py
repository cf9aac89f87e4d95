"""SNLI-VE with the caption as premise: 6 epochs of large, 5 of base.

Source: run_scripts/snli_ve/train_snli_ve{,_base}.sh. Accuracy of large in the README: 90.3 (validation), 90.2 (test).
"""

from __future__ import annotations

from configs.recipes.finetuning import LIKE_BASE, finetuning, pairs, sized, updates
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RunConfig

HYPOTHESES = 529_527  # of the training split (Xie et al. 2019, arXiv 1901.06706, table 1)


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `size=base` and what every config takes."""
    chosen, rest = sized(arg)
    base, rows = chosen["size"] in LIKE_BASE, 256
    config = finetuning(
        "snli_ve",
        chosen["size"],
        block=pairs("entailment", "snli_ve", rows=rows, source_len=128, target_len=2, image_px=480),
        sets=tuple(EvalSetConfig(f"snli_ve/{split}", "entailment", "snli_ve", split) for split in ("validation", "test")),
        steps=updates(HYPOTHESES, epochs=5 if base else 6, rows=rows),
        learning_rate=5e-5 if base else 2e-5,
        warmup=0.06,
        drop_path=0.1 if base else 0.2,
        loss=LossConfig(answers="task"),
        decode=("all-candidate:score,answers=task",),
        best="eval/accuracy/snli_ve/validation",
    )
    return with_arg(config, rest)
