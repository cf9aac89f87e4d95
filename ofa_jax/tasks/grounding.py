"""Visual grounding: find the region that a text describes."""

from __future__ import annotations

import numpy as np

from ofa_jax.data.records import Region
from ofa_jax.data.transforms.text import SOURCE_WORDS, pre_caption
from ofa_jax.tasks.base import Example, Location, Task, TaskContext, Words

OPENING, CLOSING = ' which region does the text "', ' " describe?'


def build(item: Region, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` which region does the text " {text} " describe?`, target the four bins of the box. Draws nothing."""
    text = Words(" " + pre_caption(item.text, SOURCE_WORDS), from_record=True)
    return Example(task="grounding", source=(Words(OPENING), text, Words(CLOSING)), target=(Location(item.box),))


GROUNDING = Task("grounding", build, output="box", scoring="free", metrics=("acc_at_iou_50",))
