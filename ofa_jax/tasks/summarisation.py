"""Summaries as Gigaword's fine-tuning has them: the headline of an article's first sentence."""

from __future__ import annotations

import numpy as np

from ofa_jax.data.transforms.text import pre_caption
from ofa_jax.tasks.base import Example, Task, TaskContext, Texts, Words

OPENING, CLOSING = ' what is the summary of article "', ' "?'
SOURCE_WORDS, TARGET_WORDS = 512, 64  # max_src_length and max_tgt_length of the official script
UNKNOWN = "<unk>"  # a rare word of the data set, which the official code reads as the word unk


def build(item: Texts, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` what is the summary of article " {text} "?` of at most 512 words, target `{summary}` of at most 64, without a leading space.
    Draws nothing."""
    text = pre_caption(item.text, SOURCE_WORDS).replace(UNKNOWN, "unk")
    summary = " ".join(item.answer.replace(UNKNOWN, "unk").split()[:TARGET_WORDS])
    return Example(
        task="summarisation",
        source=(Words(OPENING), Words(" " + text, from_record=True), Words(CLOSING)),
        target=(Words(summary, from_record=True),),
    )


SUMMARISATION = Task(
    "summarisation", build, output="text", scoring="free", metrics=("gigaword_rouge_l", "gigaword_rouge_1", "gigaword_rouge_2")
)
