"""Captioning: write the caption of the picture."""

from __future__ import annotations

import numpy as np

from ofa_jax.data.records import Caption
from ofa_jax.data.transforms.text import TARGET_WORDS, pre_caption
from ofa_jax.tasks.base import Example, Task, TaskContext, Words

INSTRUCTION = " what does the image describe?"
NO_LOSS_PREFIX = {"cc12m": 2}  # the official code takes no loss on the first two tokens of CC12M's captions


def build(item: Caption, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` what does the image describe?`, target ` {caption}` of at most 30 words. Draws nothing."""
    return Example(
        task="captioning",
        source=(Words(INSTRUCTION),),
        target=(Words(" " + pre_caption(item.text, TARGET_WORDS), from_record=True),),
        no_loss_prefix=NO_LOSS_PREFIX.get(context.dataset, 0),
    )


CAPTIONING = Task("captioning", build, output="text", scoring="free", metrics=("cider", "bleu4", "rouge_l", "exact_match"))
