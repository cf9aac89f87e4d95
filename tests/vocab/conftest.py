"""Tokenisers that the vocabulary tests share, each made once."""

from __future__ import annotations

import pydoc_data.topics

import pytest

from ofa_jax.config.schema import VocabConfig
from ofa_jax.vocab import sentencepiece
from ofa_jax.vocab.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def prose() -> list[str]:
    """Real English prose: Python's own documentation."""
    return [line for _, topic in sorted(pydoc_data.topics.topics.items()) for line in topic.lower().split("\n") if line.strip()][:6000]


@pytest.fixture(scope="session")
def sentencepiece_vocab(tmp_path_factory: pytest.TempPathFactory, prose: list[str]) -> VocabConfig:
    path = tmp_path_factory.mktemp("vocab") / "made" / "tokenizer.model"
    num_text = sentencepiece.train(prose, path, 900)
    return VocabConfig(tokenizer="sentencepiece", path=str(path), num_text=num_text, num_codes=64, num_bins=100, canvas_px=64)


@pytest.fixture(scope="session")
def pieces(sentencepiece_vocab: VocabConfig) -> Tokenizer:
    return load_tokenizer(sentencepiece_vocab)


@pytest.fixture(scope="session")
def gpt2() -> Tokenizer:
    return load_tokenizer(VocabConfig())
