"""What an evaluation needs beside a model: the config with its sets, the tokeniser, and how records become examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import EvalSetConfig, RunConfig, SourceConfig
from ofa_jax.data.records import RecordSource
from ofa_jax.data.transforms.image import transform
from ofa_jax.tasks.base import Negatives
from ofa_jax.tasks.matching import NO, YES
from ofa_jax.tasks.negatives import load_negatives
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.tasks.training_data import open_source
from ofa_jax.vocab.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class World:
    """Values that all points of an evaluation share."""

    config: RunConfig
    tokenizer: Tokenizer
    build_row: RowBuilder  # does not augment
    open_source: Callable[[SourceConfig], RecordSource]
    negatives: Mapping[str, Negatives]  # by dataset

    def training_answers(self, eval_set: EvalSetConfig) -> tuple[str, ...]:
        """Returns the closed set that the training data of a set gives: all its answers, or yes and no for matching.

        Raises ConfigError for a task whose answers are no closed set, or data without answers.
        """
        if eval_set.task == "matching":
            return YES.strip(), NO.strip()
        kinds = self.negatives[eval_set.dataset].answers if eval_set.task in ("vqa", "answering") else {}
        answers = tuple(sorted({answer for kind in kinds.values() for answer in kind}))
        if not answers:
            raise ConfigError(
                f"answers=training for set {eval_set.name}: found no training answers for task {eval_set.task} of {eval_set.dataset}, "
                "expected task vqa or answering with a negatives.json, or matching; a file of labels serves any task"
            )
        return answers


def load_world(config: RunConfig, sets: Sequence[EvalSetConfig]) -> World:
    """Returns the world of a config's data for `sets`. Raises ConfigError when the tokeniser does not fit, DataError for missing data."""
    try:
        tokenizer = load_tokenizer(config.vocab)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    negatives = {name: load_negatives(config.data.dir, name) for name in sorted({s.dataset for s in sets})}
    return World(
        config,
        tokenizer,
        RowBuilder(config.vocab, tokenizer, negatives, transform, train=False, question_objects=config.data.question_objects),
        partial(open_source, config),
        negatives,
    )
