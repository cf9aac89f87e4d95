"""Parts to ids: cutting, ranges, weights, and the errors of records that cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import BOS_ID, EOS_ID, VocabConfig
from ofa_jax.data.batch import Sequence
from ofa_jax.data.records import Box, Question, RecordError
from ofa_jax.tasks.base import Example, ImageCodes, Location, Part, Pieces, TaskContext, Words
from ofa_jax.tasks.encode import Encoder, cut_at_word
from ofa_jax.tasks.table import TASKS
from ofa_jax.vocab.tokenizer import Tokenizer

Encode = Callable[..., Sequence]
BOX = Location(Box(0, 0, 32, 64))


@pytest.fixture(scope="module")
def encode(vocab: VocabConfig, tokenizer: Tokenizer) -> Encode:
    encoder = Encoder(vocab=vocab, encode_text=lambda text: tuple(tokenizer.encode(text)), word_starts=tokenizer.word_starts)

    def run(
        *target: Part, source: tuple[Part, ...] = (Words(" what?"),), source_len: int = 64, target_len: int = 64, **fields: object
    ) -> Sequence:
        example = Example("captioning", source, target, **fields)
        return encoder.encode(example, task_id=0, source_len=source_len, target_len=target_len, dataset="scenes", record="r7")

    return run


def test_ids_of_every_part(encode: Encode, tokenizer: Tokenizer, vocab: VocabConfig) -> None:
    found = encode(Words(" dog"), Pieces((5, 6)), BOX, ImageCodes((0, 63, 1, 2)), source=(Words("  what"), BOX), no_loss_prefix=2)
    bins = [vocab.first_bin_id + b for b in (0, 0, 50, 99)]
    codes = [vocab.first_code_id + c for c in (0, 63, 1, 2)]
    assert found.source_ids == [BOS_ID, *tokenizer.encode("  what"), *bins, EOS_ID]
    assert found.target_ids == [*tokenizer.encode(" dog"), 5, 6, *bins, *codes]
    assert (found.confidence, found.code_mask, found.task_id, found.no_loss_prefix) == (1.0, False, 0, 2)


def test_a_short_target_keeps_the_loss_of_its_eos(encode: Encode, tokenizer: Tokenizer) -> None:
    target = tokenizer.decode(tokenizer.encode(" dog")[:1])
    assert encode(Words(target), no_loss_prefix=2).no_loss_prefix == 1


@settings(deadline=None)
@given(st.lists(st.sampled_from([4, 5, 6]), min_size=1, max_size=30), st.integers(1, 30))
def test_cutting_at_a_word(ids: list[int], limit: int) -> None:
    starts = np.array([False, False, False, False, True, False, False])
    cut = list(cut_at_word(ids, limit, word_starts=starts))
    assert cut == ids[: len(cut)] and 0 < len(cut) <= limit
    if len(ids) <= limit:
        assert cut == ids
    elif not starts[ids[len(cut)]]:  # only a first word that is too long by itself is cut in its middle
        assert len(cut) == limit and not starts[ids[1 : limit + 1]].any()


def test_long_text_is_cut_and_the_instruction_stays(encode: Encode, tokenizer: Tokenizer) -> None:
    long = Words(" the lazy dog jumps over the quick brown fox" * 5, from_record=True)
    found = encode(long, source=(Words(' does the image describe "'), long, Words(' "?')), source_len=32, target_len=20)
    assert len(found.source_ids) <= 32 and len(found.target_ids) <= 19
    source, target = tokenizer.decode(found.source_ids), tokenizer.decode(found.target_ids)
    assert source.startswith(' does the image describe " the lazy dog') and source.endswith(' "?')
    kept = source.removeprefix(' does the image describe "').removesuffix(' "?')
    assert long.text.startswith(kept + " ") and long.text.startswith(target + " ")


def test_of_two_texts_the_longer_is_cut(encode: Encode, tokenizer: Tokenizer) -> None:
    question, answer = Words(" the dog" * 20, from_record=True), Words(" the lazy fox", from_record=True)
    found = encode(Words(" yes"), source=(question, Words(' ". is "'), answer), source_len=32)
    assert tokenizer.decode(found.source_ids).endswith(' ". is " the lazy fox') and 30 <= len(found.source_ids) <= 32


def test_detection_is_cut_at_whole_objects(encode: Encode, tokenizer: Tokenizer) -> None:
    objects = [part for _ in range(10) for part in (BOX, Words(" the lazy dog", from_record=True))]
    size = 4 + len(tokenizer.encode(" the lazy dog"))
    for target_len, kept in ((size * 3 + 1, 3), (size * 4, 3), (size * 20, 10)):
        assert len(encode(*objects, target_len=target_len).target_ids) == kept * size
    with pytest.raises(RecordError, match=rf"field objects/label: found a first object of {size} tokens, expected at most {size - 1}"):
        encode(*objects, target_len=size)


def test_blocks_that_are_too_small(encode: Encode) -> None:
    with pytest.raises(ConfigError, match="source_len: found 3, expected at least .* for captioning of scenes"):
        encode(Words(" yes"), source=(Words(" what does the image describe?"),), source_len=3)
    with pytest.raises(ConfigError, match="target_len: found 4, expected at least 5"):
        encode(BOX, target_len=4)
    with pytest.raises(ConfigError, match="target_len: found 16, expected at least 17"):
        encode(ImageCodes(tuple(range(16))), target_len=16)


@pytest.mark.parametrize(
    ("part", "reason", "message"),
    [
        (Words(" ", from_record=True), "empty_text", "found ' ', expected at least one word"),
        (Pieces(()), "empty_text", "found no tokens, expected at least one word"),
        (Pieces((5, 10**6)), "token_range", "field token ids: found 5 to 1000000, expected 0 to "),
        (ImageCodes((0, 1, 2, 64)), "token_range", "field codes: found 0 to 64, expected 0 to 63"),
        (ImageCodes((0, 1, 2, -1)), "token_range", "field codes: found -1 to 2, expected 0 to 63"),
        (ImageCodes((0, 1, 2)), "schema", "found 3 codes, expected a square grid"),
        (Location(Box(0, 0, 65, 3)), "box_outside", "found 0,0,65,3 px of the network input, expected 0 to 64 px"),
        (Location(Box(-1, 0, 6, 3)), "box_outside", "found -1,0,6,3 px of the network input"),
        (Location(Box(0, 0, 6, float("nan"))), "box_outside", "nan px of the network input"),
    ],
)
def test_content_errors(encode: Encode, part: Part, reason: str, message: str) -> None:
    with pytest.raises(RecordError, match="scenes record r7: field") as error:
        encode(part)
    assert error.value.reason == reason and message in str(error.value)


@pytest.mark.parametrize("confidence", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_none(encode: Encode, confidence: float) -> None:
    with pytest.raises(RecordError, match="field confidence: .* expected a positive finite number"):
        encode(Words(" yes"), confidence=confidence)


def test_a_question_of_punctuation_is_rejected(vocab: VocabConfig, tokenizer: Tokenizer, context: TaskContext) -> None:
    encoder = Encoder(vocab=vocab, encode_text=lambda text: tuple(tokenizer.encode(text)), word_starts=tokenizer.word_starts)
    example = TASKS["vqa"].build(Question("?!", "dog"), np.random.default_rng(0), context)
    with pytest.raises(RecordError, match="scenes record r1: field vqa: found ' ', expected at least one word"):
        encoder.encode(example, task_id=4, source_len=64, target_len=64, dataset="scenes", record="r1")


def test_a_part_of_unknown_type(encode: Encode) -> None:
    with pytest.raises(TypeError, match="found str, expected Words"):
        encode("text")
    assert dataclasses.is_dataclass(Words)
