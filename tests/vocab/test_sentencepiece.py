"""SentencePiece: layout of ids, exact round trips, and what happens with files that do not fit."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, UNK_ID, VocabConfig
from ofa_jax.vocab import sentencepiece
from ofa_jax.vocab.tokenizer import Tokenizer, load_tokenizer


def test_layout_of_ids(pieces: Tokenizer, sentencepiece_vocab: VocabConfig) -> None:
    assert (pieces.num_text, pieces.mask_id) == (901, 900) == (sentencepiece_vocab.num_text, sentencepiece_vocab.mask_id)
    assert pieces.word_starts.shape == (901,) and pieces.word_starts.dtype == bool
    assert pieces.word_starts[[BOS_ID, PAD_ID, EOS_ID, UNK_ID, 900]].tolist() == [False, True, False, True, True]
    assert pieces.decode([BOS_ID, *pieces.encode(" what"), EOS_ID, PAD_ID, UNK_ID, 900, 901, 965]) == " what<unk><mask><code_0><bin_0>"


def test_words_carry_their_leading_space(pieces: Tokenizer) -> None:
    assert len(pieces.encode(" the")) == 1 and len(pieces.encode(" statement")) == 1
    assert pieces.encode(" the") != pieces.encode("the")
    ids = pieces.encode("  the statement is")
    assert pieces.word_starts[ids].tolist() == [True] * 4  # the second leading space is a piece of its own
    assert not pieces.word_starts[pieces.encode("the")].any()


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_round_trip_of_any_text(pieces: Tokenizer, text: str) -> None:
    ids = pieces.encode(text)
    assert pieces.decode(ids) == text
    assert all(3 < token < pieces.mask_id for token in ids)


@settings(deadline=None)
@given(st.lists(st.text("abcXYZ019.,\"'?éß", min_size=1), min_size=2, max_size=5))
def test_text_may_be_split_before_a_word(pieces: Tokenizer, gpt2: Tokenizer, words: list[str]) -> None:
    """What lets instructions be encoded apart from the record's text."""
    for tokenizer in (pieces, gpt2):
        parts = [" " + word for word in words]
        assert list(itertools.chain(*tokenizer.encode_batch(parts))) == tokenizer.encode("".join(parts))


def test_training_is_repeatable_and_pickling_keeps_the_ids(
    prose: list[str], pieces: Tokenizer, sentencepiece_vocab: VocabConfig, tmp_path: Path
) -> None:
    again = tmp_path / "again.model"
    assert sentencepiece.train(prose, again, 900) == 901
    assert again.read_bytes() == Path(sentencepiece_vocab.path).read_bytes()
    copy = pickle.loads(pickle.dumps(pieces))
    assert copy.encode(" what is it?") == pieces.encode(" what is it?") and copy.digest == pieces.digest
    assert np.array_equal(copy.word_starts, pieces.word_starts)
    assert [p.name for p in tmp_path.iterdir()] == ["again.model"]


@pytest.mark.parametrize(
    ("texts", "size"),
    [
        (["two words"], 900),  # too little text for so many pieces
        (["two words"], 100),  # no room for the bytes
        ([], 900),
    ],
)
def test_training_that_cannot_reach_the_size(texts: list[str], size: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{size} pieces"):
        sentencepiece.train(texts, tmp_path / "none.model", size)
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit(sentencepiece_vocab: VocabConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocab\.num_text: found 900, expected 901"):
        load_tokenizer(dataclasses.replace(sentencepiece_vocab, num_text=900))
    with pytest.raises(ConfigError, match=r"vocab\.path: found no readable file"):
        load_tokenizer(dataclasses.replace(sentencepiece_vocab, path=str(tmp_path / "none.model")))
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"no model")
    with pytest.raises(ConfigError, match="no SentencePiece model"):
        load_tokenizer(dataclasses.replace(sentencepiece_vocab, path=str(broken)))
    with pytest.raises(ConfigError, match=r"vocab\.tokenizer"):
        load_tokenizer(dataclasses.replace(sentencepiece_vocab, tokenizer="words"))
