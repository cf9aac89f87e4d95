"""Image infilling: write the image codes of the hidden central square."""

from __future__ import annotations

import numpy as np

from ofa_jax.tasks.base import Codes, Example, ImageCodes, Task, TaskContext, Words
from ofa_jax.tasks.detection import CONFIDENCE

INSTRUCTION = " what is the image in the middle part?"


def build(item: Codes, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` what is the image in the middle part?`, target the codes in raster order; the picture has a hole. Draws nothing."""
    return Example(
        task="image_infilling",
        source=(Words(INSTRUCTION),),
        target=(ImageCodes(item.codes),),
        confidence=CONFIDENCE,
        code_mask=True,
        hole=True,
    )


IMAGE_INFILLING = Task("image_infilling", build, output="codes", scoring="teacher_forced", metrics=("code_accuracy",))
