"""Visual question answering."""

from __future__ import annotations

import numpy as np

from ofa_jax.data.records import Question
from ofa_jax.data.transforms.text import SOURCE_WORDS, pre_question
from ofa_jax.tasks.base import Example, Task, TaskContext, Words


def build(item: Question, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` {question}` of at most 80 words, target ` {answer}` as it stands; weighs as much as the answer. Draws nothing."""
    return Example(
        task="vqa",
        source=(Words(" " + pre_question(item.question, SOURCE_WORDS), from_record=True),),
        target=(Words(" " + item.answer, from_record=True),),
        confidence=item.confidence,
    )


VQA = Task("vqa", build, output="text", scoring="free", metrics=("accuracy",))
