"""Image generation: write the image codes of a whole picture from its caption. The encoder sees no picture."""

from __future__ import annotations

import numpy as np

from ofa_jax.tasks.base import Example, ImageCodes, Painting, Task, TaskContext, Words

INSTRUCTION = " what is the complete image? caption:"
CAPTION_WORDS = 64  # max_src_length of the official script


def build(item: Painting, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` what is the complete image? caption: {caption}` of at most 64 words, target the codes in raster order. Draws nothing."""
    caption = " ".join(item.caption.split()[:CAPTION_WORDS])
    return Example(
        task="image_generation",
        source=(Words(INSTRUCTION), Words(" " + caption, from_record=True)),
        target=(ImageCodes(item.codes),),
        code_mask=True,
    )


IMAGE_GENERATION = Task("image_generation", build, output="codes", scoring="teacher_forced", metrics=("code_accuracy",))
