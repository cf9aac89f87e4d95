"""Grounded captioning: describe one region of the picture."""

from __future__ import annotations

import numpy as np

from ofa_jax.data.records import Region
from ofa_jax.data.transforms.text import TARGET_WORDS, pre_caption
from ofa_jax.tasks.base import Example, Location, Task, TaskContext, Words

INSTRUCTION = "  what does the region describe? region:"  # two leading spaces, as in the official code: one token more


def build(item: Region, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source `  what does the region describe? region:` and four bins, target ` {text}` of at most 30 words. Draws nothing."""
    return Example(
        task="grounded_captioning",
        source=(Words(INSTRUCTION), Location(item.box)),
        target=(Words(" " + pre_caption(item.text, TARGET_WORDS), from_record=True),),
    )


GROUNDED_CAPTIONING = Task("grounded_captioning", build, output="text", scoring="free", metrics=("cider", "exact_match"))
