"""A nano OFA that learns all eight tasks in about a quarter of an hour on two CPU cores.

Data: easy-VQA (a published benchmark of real questions on drawn shapes), scenes composed of OpenMoji artwork (synthetic compositions, with
exact boxes, captions, questions and objects) and English prose; `make quickstart` prepares all of it. The batch keeps OFA's ratio of
8 pairs : 2 texts : 1 infilling : 1 detection; every other number here is ours, chosen for a small model on a CPU.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import (
    BlockConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    EvalSetConfig,
    InitConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    VocabConfig,
)
from ofa_jax.config.sizes import SIZES

DIR = "data/quickstart"
FRONT = "quickstart_front"  # the run that trains the image front first
SCENE_TASKS = ("captioning", "matching", "grounding", "grounded_captioning", "vqa", "detection", "image_infilling")
SCENE_SPLITS = ("validation", "seen_composition", "unseen_composition", "unseen_artwork")


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `debug` for seconds on generated data, `steps=N`."""
    return with_arg(quickstart(steps=3_400), arg)


def quickstart(*, steps: int, name: str = "quickstart") -> RunConfig:
    """Returns the quickstart's run of `steps` updates."""
    return RunConfig(
        name=name,
        model=dataclasses.replace(SIZES["nano"], convolution="matmul", init_std=0.06, image_norm="frozen"),
        vocab=VocabConfig(
            tokenizer="sentencepiece",
            path=f"{DIR}/tokenizer.model",
            num_text=2_000,
            num_codes=128,
            num_bins=64,
            canvas_px=64,
            pad_multiple=16,
        ),
        data=DataConfig(dir=DIR, blocks=blocks(), prefetch=4, write_digests=True),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_fraction=0.05, clip_norm=1.0, ema_decay=0.99, frozen=("resnet",)),
        checkpoint=CheckpointConfig(every_steps=500, every_s=0.0, keep=2),
        eval=EvalConfig(sets=eval_sets(), batch_rows=64, source_len=80, target_len=72, image_px=64),
        init=InitConfig(checkpoint=f"runs/{FRONT}", parts=("resnet",)),
        steps=steps,
        log_every=20,
    )


def blocks() -> tuple[BlockConfig, ...]:
    """Returns the row blocks, 32 pairs : 8 texts : 4 infillings : 4 detections.

    Lengths are tokens: nothing of the data is longer but a few questions of scenes (by a token) and prose. easy-VQA has a block of its
    own, because its answers are one token and it has ten questions a picture: eight of them share one encoding. It has most of the
    pairs, as it learns slowest: grounding is far above its baseline with a tenth of them.
    """
    shapes = (SourceConfig("easy_vqa", "question"),)
    scenes = (SourceConfig("scenes", "question", 2.0), SourceConfig("scenes", "grounding", 3.0))
    return (
        BlockConfig("shapes", "pairs", rows=3, source_len=24, target_len=2, sources=shapes, image_px=64, pairs_per_image=8),
        BlockConfig("scenes", "pairs", rows=1, source_len=26, target_len=8, sources=scenes, image_px=64, pairs_per_image=4),
        BlockConfig("captions", "pairs", rows=4, source_len=20, target_len=12, sources=_scenes("caption"), image_px=64),
        BlockConfig("detection", "images", rows=4, source_len=10, target_len=22, sources=_scenes("detection"), image_px=64),
        BlockConfig("infilling", "images", rows=4, source_len=11, target_len=65, sources=_scenes("image_infilling"), image_px=64),
        BlockConfig("prose", "text", rows=8, source_len=72, target_len=64, sources=(SourceConfig("prose", "text_infilling"),)),
    )


def _scenes(row: Literal["caption", "detection", "image_infilling"]) -> tuple[SourceConfig, ...]:
    return (SourceConfig("scenes", row),)


def eval_sets() -> tuple[EvalSetConfig, ...]:
    """Returns the table's rows: easy-VQA's official test split, every scene task on its held-out splits, held-out prose."""
    scenes = tuple(EvalSetConfig(f"{task}/{split}", task, "scenes", split, limit=600) for split in SCENE_SPLITS for task in SCENE_TASKS)
    return (
        EvalSetConfig("easy_vqa/test", "vqa", "easy_vqa", "test"),
        *scenes,
        EvalSetConfig("text_infilling/validation", "text_infilling", "prose", "validation", limit=600),
    )
