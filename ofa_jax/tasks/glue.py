"""Seven tasks of GLUE as questions; STS-B and WNLI are not OFA's. Templates and words are those of the official data sets' code.

Labels are known by name (tasks differ in the numbers that they give them), and the decoder reads the whole question, its EOS too, before
it answers with one word (official `prompt_type` src).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.tasks.base import Example, Task, TaskContext, Texts, Words

SENTENCE_WORDS = 512  # max_src_length of the official scripts
_IMPLIES = {"entailment": "yes", "not_entailment": "no"}
_SAME = {"equivalent": "yes", "not_equivalent": "no"}


@dataclasses.dataclass(frozen=True)
class Template:
    """How a pair of texts is asked about: what stands before, between and behind them, and the words of the labels."""

    opening: str
    middle: str  # empty: there is one text
    closing: str
    words: dict[str, str]
    swapped: bool = False  # the second text comes first

    def example(self, name: str, item: Texts, context: TaskContext) -> Example:
        """Returns the example of `item`. Raises ConfigError for a label of another name."""
        if item.answer not in self.words:
            raise ConfigError(f"dataset {context.dataset}: found the label {item.answer!r}, expected one of {', '.join(self.words)}")
        texts = [Words(" " + " ".join(text.lower().split()[:SENTENCE_WORDS]), from_record=True) for text in (item.text, item.text2)]
        first, second = reversed(texts) if self.swapped else texts
        source = (Words(self.opening), first, Words(self.closing))
        if self.middle:
            source = (Words(self.opening), first, Words(self.middle), second, Words(self.closing))  # type: ignore[assignment]
        return Example(task=name, source=source, target=(Words(" " + self.words[item.answer]),))


TEMPLATES = {
    "cola": Template(' is the text "', "", ' " grammatically correct?', {"unacceptable": "no", "acceptable": "yes"}),
    "mnli": Template(
        ' can text1 "', ' " imply text2 "', ' "?', {"neutral": "maybe", "entailment": "yes", "contradiction": "no"}
    ),
    "mrpc": Template(' does text1 "', ' " and text2 "', ' " have the same semantics?', _SAME),
    # The data's first text is the question, which the template has second.
    "qnli": Template(' does "', ' " contain the answer to question "', ' "?', _IMPLIES, swapped=True),
    "qqp": Template(' is question "', ' " and question "', ' " equivalent?', _SAME),
    "rte": Template(' can text1 "', ' " imply text2 "', ' "?', _IMPLIES),
    "sst2": Template(
        ' is the sentiment of text "', "", ' " positive or negative?', {"negative": "negative", "positive": "positive"}
    ),
}  # fmt: skip
_OTHERS = {"cola": ("mcc", "accuracy"), "mrpc": ("accuracy", "f1_yes"), "qqp": ("accuracy", "f1_yes")}


def _task(name: str) -> Task:
    template = TEMPLATES[name]

    def build(item: Texts, draw: np.random.Generator, context: TaskContext) -> Example:
        """The question of the table, with the words of the texts in small letters; target one word. Draws nothing."""
        return template.example(name, item, context)

    return Task(
        name,
        build,
        output="text",
        scoring="free",
        metrics=_OTHERS.get(name, ("accuracy",)),
        prompt="source_eos",
        answers=tuple(template.words.values()),
    )


GLUE: tuple[Task, ...] = tuple(map(_task, TEMPLATES))
