"""Gigaword: headlines, 6 epochs with noise in what the decoder reads.

Source: run_scripts/gigaword/train_gigaword.sh (large). ROUGE-L in the README about 36.4, in the paper 37.11.
"""

from __future__ import annotations

from configs.recipes.finetuning import TEXT_ALONE, finetuning, sized, texts, updates
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RunConfig

ARTICLES = 3_803_957  # of the training split (Rush et al. 2015)


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `size=base` and what every config takes."""
    chosen, rest = sized(arg)
    rows = 512
    config = finetuning(
        "gigaword",
        chosen["size"],
        block=texts("summary", "gigaword", rows=rows, source_len=128, target_len=40),
        sets=tuple(EvalSetConfig(f"gigaword/{split}", "summarisation", "gigaword", split) for split in ("validation", "test")),
        steps=updates(ARTICLES, epochs=6, rows=rows),
        learning_rate=1e-4,
        warmup=0.06,
        drop_path=0.1,
        loss=LossConfig(label_smoothing=0.1, decoder_noise=0.2),
        model=TEXT_ALONE,
        decode=("beam:beam,beam=6,lenpen=0.7,max_len=32,no_repeat_ngram=3",),
        best="eval/gigaword_rouge_l/gigaword/validation",
    )
    return with_arg(config, rest)
