"""The seven tasks of GLUE, one at a time.

Source: run_scripts/glue/train_<task>.sh: rates of 3e-5 to 1e-4, 5, 7 or 10 epochs and two or three batches each, of which the best on the
development set is reported. Here the middle of each: 5e-5, 7 epochs; `--config.optimizer.learning_rate` and `steps=` walk the grid. Paper,
large: SST-2 96.6, RTE 91.0, MRPC 91.7, QQP 92.5, MNLI 90.2, QNLI 94.8.
"""

from __future__ import annotations

from configs.recipes.finetuning import TEXT_ALONE, finetuning, sized, texts, updates
from ofa_jax.config.debug import with_arg
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RunConfig

# Training examples (GLUE's own counts) and the middle of the scripts' global batches.
EXAMPLES = {"cola": 8_551, "mnli": 392_702, "mrpc": 3_668, "qnli": 104_743, "qqp": 363_846, "rte": 2_490, "sst2": 67_349}
ROWS = {"cola": 64, "mnli": 128, "mrpc": 64, "qnli": 128, "qqp": 128, "rte": 64, "sst2": 64}
LENGTHS = {"cola": 64, "mnli": 192, "mrpc": 160, "qnli": 512, "qqp": 192, "rte": 320, "sst2": 96}  # a decoder reads the source too
BEST = {"cola": "mcc"}


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `data=mnli` (cola, mnli, mrpc, qnli, qqp, rte, sst2), `size=base`, and what every config takes."""
    chosen, rest = sized(arg, data="rte")
    data = chosen["data"]
    if data not in EXAMPLES:
        raise ConfigError(f"config argument {arg!r}: data: found {data}, expected one of {', '.join(EXAMPLES)}")
    splits = ("validation_matched", "validation_mismatched") if data == "mnli" else ("validation",)
    config = finetuning(
        f"glue_{data}",
        chosen["size"],
        block=texts(data, data, rows=ROWS[data], source_len=LENGTHS[data], target_len=2),
        sets=tuple(EvalSetConfig(f"{data}/{split}", data, data, split) for split in splits),
        steps=updates(EXAMPLES[data], epochs=7, rows=ROWS[data]),
        learning_rate=5e-5,
        warmup=0.06,
        drop_path=0.1,
        loss=LossConfig(answers="task"),
        model=TEXT_ALONE,
        decode=("trie:score,answers=task",),
        best=f"eval/{BEST.get(data, 'accuracy')}/{data}/{splits[0]}",
    )
    return with_arg(config, rest)
