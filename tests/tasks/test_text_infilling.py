"""Text infilling at any block length: everything fits, and the official limits hold where there is room."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from ofa_jax.config.errors import ConfigError
from ofa_jax.tasks.base import Example, Passage, TaskContext
from ofa_jax.tasks.table import TASKS
from ofa_jax.vocab.tokenizer import Tokenizer

WORDS = [f"{a}{b}{c}" for a, b, c in itertools.product("bdfgklm", "aeiou", "nrst")]


def passage(words: int, seed: int = 0) -> str:
    return "  " + " ".join(np.random.default_rng(seed).choice(WORDS, words)).upper() + "\n"


def build(text: str, context: TaskContext, seed: int = 0, **lengths: int) -> Example:
    return TASKS["text_infilling"].build(Passage(text), np.random.default_rng(seed), dataclasses.replace(context, **lengths))


def instruction_tokens(tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode(' what is the complete text of " "?'))


def test_the_official_limits(context: TaskContext, tokenizer: Tokenizer) -> None:
    """The first 512 tokens of the lower-cased text, and of these the last 256."""
    text = passage(5000)
    example = build(text, context, source_len=300, target_len=272)
    assert list(example.target[0].ids) == tokenizer.encode(" " + text.strip().lower())[256:512]


def test_a_short_text_stays_whole(context: TaskContext, tokenizer: Tokenizer) -> None:
    assert list(build("A Dog ran. ", context).target[0].ids) == tokenizer.encode(" a dog ran.")


@pytest.mark.parametrize("white", ["\n\n", "   ", "\t", "\u3000", ""])
def test_a_long_text_is_encoded_only_as_far_as_needed(white: str, context: TaskContext, tokenizer: Tokenizer) -> None:
    """Whatever stands between the words, the ids are those of the whole text."""
    text = white.join(passage(9, seed).strip() + " " + "x" * 50 for seed in range(300))
    example = build(text, context, source_len=80, target_len=41)
    assert list(example.target[0].ids) == tokenizer.encode(" " + text.lower())[40:80]


def test_everything_fits_every_block(context: TaskContext, tokenizer: Tokenizer) -> None:
    fixed = 2 + instruction_tokens(tokenizer)
    for seed in range(150):
        source_len, target_len = fixed + 1 + seed % 40, 2 + (seed * 7) % 45
        example = build(passage(100, seed), context, seed, source_len=source_len, target_len=target_len)
        noised, target = example.source[1].ids, example.target[0].ids
        assert 0 < len(target) <= target_len - 1 and len(noised) + fixed <= source_len
        assert example.scored is not None and len(example.scored) == len(target)
        kept = [token for token, scored in zip(target, example.scored, strict=True) if not scored]
        assert [token for token in noised if token != tokenizer.mask_id] == kept


def test_no_room_at_all(context: TaskContext, tokenizer: Tokenizer) -> None:
    for lengths in ({"source_len": 2 + instruction_tokens(tokenizer)}, {"target_len": 1}):
        with pytest.raises(ConfigError, match="text block: found source_len .* expected room for a word in each"):
            build("a dog", context, **lengths)
