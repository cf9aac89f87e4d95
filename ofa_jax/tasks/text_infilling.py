"""Text infilling: write the whole of a passage of which spans are hidden."""

from __future__ import annotations

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.data.transforms.noise import infill
from ofa_jax.tasks.base import Example, Passage, Pieces, Task, TaskContext, Words
from ofa_jax.tasks.detection import CONFIDENCE
from ofa_jax.vocab.tokenizer import Tokenizer

OPENING, CLOSING = ' what is the complete text of "', ' "?'
PASSAGE_TOKENS = 256  # the official code reads the first 512 tokens of a text and keeps the last 256 of them
_PREFIX_CHARACTERS = 16  # per token wanted: enough for nearly every text, so that a long one is not encoded to its end


def build(item: Passage, draw: np.random.Generator, context: TaskContext) -> Example:
    """Source ` what is the complete text of " {noised} "?`, target the tokens as they were. `scored` marks the hidden ones.

    The passage is the last half of the first 2 n tokens, n being 256 or what the block holds: `target_len` less EOS, and `source_len`
    less BOS, EOS and instruction. Inserted MASKs can make the noised text longer than the passage: a passage that then does not fit
    is cut by the excess and noised again.
    """
    tokenizer = context.tokenizer
    room = context.source_len - 2 - len(tokenizer.encode(OPENING)) - len(tokenizer.encode(CLOSING))
    limit = min(PASSAGE_TOKENS, context.target_len - 1, room)
    if limit < 1:
        raise ConfigError(
            f"text block: found source_len {context.source_len} and target_len {context.target_len}, expected room for a word in each"
        )
    ids = _first_tokens(item.text, 2 * limit, tokenizer)[-limit:]
    while True:
        noised = infill(ids, word_starts=tokenizer.word_starts, mask_id=tokenizer.mask_id, draw=draw)
        excess = len(noised.ids) - room
        if excess <= 0:
            break
        ids = ids[:-excess]
    return Example(
        task="text_infilling",
        source=(Words(OPENING), Pieces(tuple(noised.ids)), Words(CLOSING)),
        target=(Pieces(tuple(ids)),),
        confidence=CONFIDENCE,
        scored=tuple(noised.removed),
    )


def _first_tokens(text: str, count: int, tokenizer: Tokenizer) -> list[int]:
    """The first `count` ids of the stripped, lower-cased text; none for an empty one."""
    text = text.strip().lower()
    if not text:
        return []
    # Pieces do not cross the space before a word, so the tokens of a prefix that ends there are the first tokens of the whole.
    end = text.rfind(" ", 0, _PREFIX_CHARACTERS * count)
    if len(text) > _PREFIX_CHARACTERS * count and end > 0 and not text[end - 1].isspace():
        ids = tokenizer.encode(" " + text[:end])
        if len(ids) >= count:
            return ids[:count]
    return tokenizer.encode(" " + text)[:count]


TEXT_INFILLING = Task("text_infilling", build, output="text", scoring="teacher_forced", metrics=("masked_token_accuracy",))
