"""RefCOCO, RefCOCO+ and RefCOCOg: the region that an expression means, 10 epochs of large, 10 of base (12 of RefCOCOg).

Source: run_scripts/refcoco/train_{refcoco,refcocoplus,refcocog}{,_base}.sh. Large's drop path is 0.2 there, and the README finds it better
than the paper's 0.1. Base's RefCOCOg has 12 epochs in its script. Acc@0.5 of large in the README: 90.05 / 92.93 / 85.26 (RefCOCO).
"""

from __future__ import annotations

from configs.recipes.finetuning import LIKE_BASE, finetuning, pairs, sized, updates
from ofa_jax.config.debug import with_arg
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import EvalSetConfig, LossConfig, RunConfig

# Expressions of the training split; UNC's for the first two, UMD's for RefCOCOg (refer's statistics).
EXPRESSIONS = {"refcoco": 120_624, "refcoco_plus": 120_191, "refcocog": 80_512}
_UNC = ("validation", "test_a", "test_b")
SPLITS = {"refcoco": _UNC, "refcoco_plus": _UNC, "refcocog": ("validation", "test")}


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `data=refcoco_plus` or `refcocog`, `size=base`, and what every config takes."""
    chosen, rest = sized(arg, data="refcoco")
    data, base, rows = chosen["data"], chosen["size"] in LIKE_BASE, 128
    if data not in EXPRESSIONS:
        raise ConfigError(f"config argument {arg!r}: data: found {data}, expected one of {', '.join(EXPRESSIONS)}")
    config = finetuning(
        data,
        chosen["size"],
        block=pairs("referring", data, rows=rows, source_len=96, target_len=5, image_px=512),
        sets=tuple(EvalSetConfig(f"{data}/{split}", "grounding", data, split) for split in SPLITS[data]),
        steps=updates(EXPRESSIONS[data], epochs=12 if base and data == "refcocog" else 10, rows=rows),
        learning_rate=5e-5 if base else 3e-5,
        warmup=0.06,
        drop_path=0.1 if base else 0.2,
        loss=LossConfig(label_smoothing=0.1),
        decode=("beam:beam,beam=5,no_repeat_ngram=3",),
        best=f"eval/acc_at_iou_50/{data}/validation",
    )
    return with_arg(config, rest)
