"""Captions as COCO's fine-tuning writes them: short, without punctuation."""

from __future__ import annotations

import string

import numpy as np

from ofa_jax.data.records import Caption
from ofa_jax.tasks.base import Example, Task, TaskContext, Words
from ofa_jax.tasks.captioning import CAPTIONING, INSTRUCTION

TARGET_WORDS = 20  # max_tgt_length of the official caption scripts
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def build(item: Caption, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` what does the image describe?`, target ` {caption}`: its first 20 words without ASCII punctuation, capitals as
    they are (the official training file is lower-cased). Draws nothing."""
    words = item.text.translate(_NO_PUNCTUATION).split()
    return Example(
        task="short_captioning",
        source=(Words(INSTRUCTION),),
        target=(Words(" " + " ".join(words[:TARGET_WORDS]), from_record=True),),
    )


SHORT_CAPTIONING = Task("short_captioning", build, output="text", scoring="free", metrics=CAPTIONING.metrics)
