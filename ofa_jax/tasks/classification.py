"""Image classification: the name of the picture's class, written as a caption is."""

from __future__ import annotations

import numpy as np

from ofa_jax.data.records import Caption
from ofa_jax.tasks.base import Example, Task, TaskContext, Words
from ofa_jax.tasks.captioning import INSTRUCTION


def build(item: Caption, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` what does the image describe?`, target ` {name}` of the class as it stands. Draws nothing."""
    return Example(task="classification", source=(Words(INSTRUCTION),), target=(Words(" " + item.text),))


CLASSIFICATION = Task("classification", build, output="text", scoring="free", metrics=("accuracy",))
