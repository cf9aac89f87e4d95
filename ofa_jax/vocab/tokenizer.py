"""The protocol that both tokenisers follow, and the one way to load the tokeniser that a config names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import VocabConfig
from ofa_jax.data.storage import is_remote, local_copy


class Tokenizer(Protocol):
    """Text <-> ids of the one id space. Instances are read only, picklable and safe to use from several threads."""

    num_text: int  # all text ids: BOS, PAD, EOS, UNK, pieces, MASK
    mask_id: int  # num_text - 1
    word_starts: np.ndarray  # bool [num_text]: the piece begins a word. PAD, UNK and MASK count as starts, BOS and EOS never
    digest: str  # sha256 (hex) of everything that decides the ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as it stands, without BOS and EOS. A leading space is significant: it makes word-start pieces."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, in order."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`: BOS, PAD, EOS are skipped; `<unk>`, `<mask>`, `<code_i>`, `<bin_i>` are written out."""
        ...


def load_tokenizer(vocab: VocabConfig) -> Tokenizer:
    """The tokeniser that `vocab` names, whose file may lie in an object store. Raises ConfigError or DataError, in one sentence, when its
    file does not fit the config."""
    if is_remote(vocab.path):
        try:
            vocab = dataclasses.replace(vocab, path=str(local_copy(vocab.path)))
        except FileNotFoundError as error:
            raise ConfigError(f"vocab.path: found no readable file at {vocab.path!r}, expected the tokeniser's file") from error
    # Imported here so that a run needs only the package of the tokeniser it uses.
    if vocab.tokenizer == "sentencepiece":
        from ofa_jax.vocab.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(vocab)
    if vocab.tokenizer == "gpt2_bpe":
        from ofa_jax.vocab.gpt2_bpe import Gpt2Tokenizer

        return Gpt2Tokenizer(vocab)
    raise ConfigError(f"vocab.tokenizer: found {vocab.tokenizer!r}, expected 'gpt2_bpe' or 'sentencepiece'")
