"""Image-text matching: does the caption belong to the picture, is this the answer to the question? Half of the examples say no."""

from __future__ import annotations

import numpy as np

from ofa_jax.data.records import Caption, Question
from ofa_jax.data.transforms.text import SOURCE_WORDS, pre_caption, pre_question
from ofa_jax.tasks.base import Example, Task, TaskContext, Words
from ofa_jax.tasks.negatives import negative_answer, negative_caption

CAPTION_OPENING, CAPTION_CLOSING = ' does the image describe "', ' "?'
QUESTION_OPENING, QUESTION_MIDDLE, QUESTION_CLOSING = ' what is the answer to question "', ' ". is "', ' "?'
YES, NO = " yes", " no"


def build(item: Caption | Question, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` does the image describe " {caption} "?` or ` what is the answer to question " {question} ". is " {answer} "?`.

    The target is ` yes` with the item's own text, ` no` with a negative; one draw decides, half and half, the negative draws more.
    A question's example weighs as much as its answer.
    """
    positive = draw.random() >= 0.5
    source: tuple[Words, ...]
    if isinstance(item, Caption):
        caption = pre_caption(item.text, SOURCE_WORDS) if positive else negative_caption(item, draw, context)
        source = (Words(CAPTION_OPENING), Words(" " + caption, from_record=True), Words(CAPTION_CLOSING))
        confidence = 1.0
    else:
        answer = item.answer if positive else negative_answer(item, draw, context)
        source = (
            Words(QUESTION_OPENING),
            Words(" " + pre_question(item.question, SOURCE_WORDS), from_record=True),
            Words(QUESTION_MIDDLE),
            Words(" " + answer, from_record=True),
            Words(QUESTION_CLOSING),
        )
        confidence = item.confidence
    return Example(task="matching", source=source, target=(Words(YES if positive else NO),), confidence=confidence)


MATCHING = Task("matching", build, output="text", scoring="free", metrics=("accuracy",))
