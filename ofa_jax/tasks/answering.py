"""Visual question answering as VQAv2's fine-tuning has it: the decoder reads the question before it answers."""

from __future__ import annotations

import numpy as np

from ofa_jax.data.records import Question
from ofa_jax.data.transforms.text import SOURCE_WORDS, pre_question
from ofa_jax.tasks.base import Example, Task, TaskContext, Words
from ofa_jax.tasks.vqa import VQA

OBJECTS = " object:"


def build(item: Question, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` {question}` of at most 80 words, with a question mark where it has none, and where the run asks for objects ` object: {o1 o2
    ...}` behind it, the first of them as they stand (`--add-object` of the official code); target ` {answer}` as it stands, which weighs as
    much as the answer. Draws nothing."""
    question = pre_question(item.question, SOURCE_WORDS)
    source: tuple[Words, ...] = (Words(" " + question + ("" if question.endswith("?") else "?"), from_record=True),)
    if context.question_objects:
        seen = " ".join(item.objects[: context.question_objects])
        source += (Words(OBJECTS), Words(" " + seen, from_record=True))
    return Example(
        task="answering",
        source=source,
        target=(Words(" " + item.answer),),
        confidence=item.confidence,
    )


ANSWERING = Task("answering", build, output="text", scoring="free", metrics=VQA.metrics, prompt="source")
