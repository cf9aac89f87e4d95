"""Object detection: name every object and its place, in the order of the record."""

from __future__ import annotations

import numpy as np

from ofa_jax.tasks.base import Example, Location, Objects, Part, Task, TaskContext, Words

INSTRUCTION = " what are the objects in the image?"
CONFIDENCE = 2.0  # loss weight of the tasks without an image-text pair, in the official code


def build(item: Objects, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` what are the objects in the image?`, target four bins and ` {label}` for each object. Draws nothing."""
    target: list[Part] = []
    for found in item.objects:
        target += [Location(found.box), Words(" " + found.label, from_record=True)]
    return Example(task="detection", source=(Words(INSTRUCTION),), target=tuple(target), confidence=CONFIDENCE)


DETECTION = Task("detection", build, output="objects", scoring="free", metrics=("ap50", "f1_50", "ap"))
