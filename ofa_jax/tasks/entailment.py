"""Visual entailment (SNLI-VE): do picture and premise imply the hypothesis?"""

from __future__ import annotations

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.data.transforms.text import SOURCE_WORDS, pre_caption
from ofa_jax.tasks.base import Example, Statement, Task, TaskContext, Words

OPENING, MIDDLE, CLOSING = ' can image and text1 "', ' " imply text2 "', ' "?'
ALONE = ' does the image describe "'  # without a premise (README of the official recipe, without --add-caption)
ANSWERS = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}


def build(item: Statement, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` can image and text1 " {premise} " imply text2 " {hypothesis} "?`, or ` does the image describe " {hypothesis} "?` without
    a premise, texts of at most 80 words; target ` yes`, ` no` or ` maybe`. Draws nothing.

    Raises ConfigError for a label of another name.
    """
    if item.answer not in ANSWERS:
        raise ConfigError(f"dataset {context.dataset}: found the label {item.answer!r}, expected one of {', '.join(ANSWERS)}")
    hypothesis = Words(" " + pre_caption(item.hypothesis, SOURCE_WORDS), from_record=True)
    source: tuple[Words, ...] = (Words(ALONE), hypothesis, Words(CLOSING))
    if item.premise:
        premise = Words(" " + pre_caption(item.premise, SOURCE_WORDS), from_record=True)
        source = (Words(OPENING), premise, Words(MIDDLE), hypothesis, Words(CLOSING))
    return Example(task="entailment", source=source, target=(Words(" " + ANSWERS[item.answer]),))


ENTAILMENT = Task(
    "entailment", build, output="text", scoring="free", metrics=("accuracy",), prompt="source", answers=tuple(ANSWERS.values())
)
