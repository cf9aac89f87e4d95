"""SentencePiece as OFA's text part: for vocabularies of our own, small enough for a laptop.

Text is kept as it stands (no normalisation, no dummy prefix, extra white space kept) and unseen characters fall back to bytes, so
decoding gives back every string but one character: SentencePiece writes a space as U+2581 and reads U+2581 as a space.
Ids 0 to 3 are BOS, PAD, EOS, UNK; MASK is not a piece of the model file but the id after its last one.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, UNK_ID, VocabConfig
from ofa_jax.vocab import layout

_WORD_START = "\u2581"  # how SentencePiece writes the space that begins a word
_MAX_SENTENCE_BYTES = 1 << 20  # SentencePiece drops longer sentences; its own default of 4192 would drop whole passages


def train(texts: Iterable[str], path: str | os.PathLike[str], size: int) -> int:
    """Train a byte-fallback BPE model on `texts` and write it to `path` (parent folders are made, the file appears whole).

    `size` is the number of pieces of the model file: 4 special, 256 bytes, the rest learnt. Every text is trained on with a leading
    space, as every instruction and target has one. Returns `num_text` for the config: `size` + 1, MASK being the last text id.
    The same texts in the same order give the same file. Raises DataError when the texts cannot give exactly `size` pieces.
    """
    model = io.BytesIO()
    sentences = (" " + stripped for text in texts if (stripped := text.strip()))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            bos_id=BOS_ID,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            character_coverage=0.9999,
            max_sentence_length=_MAX_SENTENCE_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise DataError(f"SentencePiece training: found texts that do not give {size} pieces, expected them to: {error}") from error
    found = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    if found != size:
        raise DataError(f"SentencePiece training: found {found} pieces in the texts, expected {size}: give more text or a smaller size")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(path.name + ".partial")
    whole.write_bytes(model.getvalue())
    whole.replace(path)
    return size + 1


class SentencePieceTokenizer:
    """`Tokenizer` over a SentencePiece model file (`VocabConfig.path`)."""

    def __init__(self, vocab: VocabConfig):
        """Reads `vocab.path`. Raises ConfigError or DataError for a file that is missing, broken or does not fit the config."""
        try:
            proto = Path(vocab.path).read_bytes()
        except OSError as error:
            raise ConfigError(f"vocab.path: found no readable file at {vocab.path!r} ({error.strerror}), expected a .model file") from error
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except RuntimeError as error:
            raise ConfigError(f"vocab.path: found {vocab.path!r}, which is no SentencePiece model, expected a .model file") from error
        size = self._model.get_piece_size()
        if vocab.num_text != size + 1:
            raise ConfigError(
                f"vocab.num_text: found {vocab.num_text}, expected {size + 1} ({vocab.path} has {size} pieces, and MASK is one more)"
            )
        special = (self._model.bos_id(), self._model.pad_id(), self._model.eos_id(), self._model.unk_id())
        if special != (BOS_ID, PAD_ID, EOS_ID, UNK_ID):
            raise DataError(f"{vocab.path}: found ids {special} of BOS, PAD, EOS, UNK, expected (0, 1, 2, 3)")
        self._vocab = vocab
        self.num_text = vocab.num_text
        self.mask_id = vocab.mask_id
        self.digest = hashlib.sha256(b"sentencepiece\0" + proto).hexdigest()
        starts = [self._model.id_to_piece(i).startswith(_WORD_START) for i in range(size)]
        self.word_starts = np.array([*starts, True])
        self.word_starts[[PAD_ID, UNK_ID]] = True
        self.word_starts.setflags(write=False)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as it stands, without BOS and EOS."""
        return self._model.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, in order."""
        return [self._model.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; see `Tokenizer.decode`."""
        return layout.render(ids, vocab=self._vocab, decode_pieces=self._model.decode)
