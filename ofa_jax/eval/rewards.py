"""What written texts are worth to self-critical training (`train/reward`): CIDEr-D with the document frequencies of a corpus, or a user's
function of instruction, picture, texts and references; and what pictures are worth that codes draw: a user's function again, as OFA's
second stage of text-to-image takes CLIP (paper, section 4.2.3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.load import read_function
from ofa_jax.config.schema import EOS_ID, PAD_ID, AnyRun, RunConfig
from ofa_jax.data.batch import Block
from ofa_jax.eval.codec import PictureCodec, load_codec, pictures_of
from ofa_jax.metrics.cider import cider
from ofa_jax.metrics.document_frequencies import DocumentFrequencies, ended, read_frequencies
from ofa_jax.tasks.image_generation import INSTRUCTION
from ofa_jax.train.reward import Rewarder
from ofa_jax.vocab.tokenizer import Tokenizer, load_tokenizer

CIDER = "cider"
_PICTURES_AT_ONCE = 32  # that a VQGAN makes of codes


def rewarder_of(config: AnyRun) -> Rewarder | None:
    """Returns the rewarder of a run with `reward`, None for others. Raises ConfigError for a function that is not there, DataError for a
    file."""
    if not isinstance(config, RunConfig) or not config.reward:
        return None
    [reward] = config.reward
    tokenizer = load_tokenizer(config.vocab)
    if {source.row for block in config.data.blocks for source in block.sources} == {"painting"}:
        codec = load_codec(config.data.dir, rows=_PICTURES_AT_ONCE)
        if codec is None:
            raise DataError(f"{config.data.dir}: found neither vqgan.npz nor codebook.npz, expected what draws the pictures of a reward")
        return PictureReward(tokenizer, reward.reward, codec, first_code_id=config.vocab.first_code_id)
    if reward.reward == CIDER:
        return CiderReward(tokenizer, read_frequencies(Path(reward.frequencies)))
    return FunctionReward(tokenizer, reward.reward)


def texts_of(ids: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """Returns the text of each row of int [N, L], up to its EOS."""
    kept = [[int(t) for t in row if t not in (PAD_ID, EOS_ID)] for row in ids]
    return [tokenizer.decode(row).strip() for row in kept]


def references_of(block: Block, rows: int, tokenizer: Tokenizer) -> list[list[str]]:
    """Returns the different targets of each row of a block. A picture's captions are drawn without replacement while they last, so that as
    many sequences as it has captions show all of them."""
    texts = texts_of(block.target_ids, tokenizer)
    each = len(texts) // rows
    return [list(dict.fromkeys(text for text in texts[row * each : (row + 1) * each] if text)) for row in range(rows)]


class CiderReward:
    """CIDEr-D of every hypothesis against its row's references."""

    def __init__(self, tokenizer: Tokenizer, frequencies: DocumentFrequencies):
        self._tokenizer, self._frequencies = tokenizer, frequencies

    def __call__(self, hypotheses: np.ndarray, block: Block) -> np.ndarray:
        """hypotheses int [R, n, L] -> float64 [R, n], on the scale of `metrics/cider` (0 to 10)."""
        rows, each = hypotheses.shape[:2]
        references = [[ended(text) for text in texts] for texts in references_of(block, rows, self._tokenizer)]
        texts = [ended(text) for text in texts_of(hypotheses.reshape(rows * each, -1), self._tokenizer)]
        repeated = [references[row] for row in range(rows) for _ in range(each)]
        return np.asarray(cider(texts, repeated, frequencies=self._frequencies).scores).reshape(rows, each)


class _Function:
    """A user's function and what is checked of it."""

    def __init__(self, spec: str):
        self._spec, self._function = spec, read_function(spec, flag="reward")

    def __call__(self, instruction: str, picture: Any, hypotheses: Any, references: list[str]) -> np.ndarray:
        """One finite number of each hypothesis, float64 [n]. Raises ConfigError where the function gives anything else."""
        found = np.asarray(self._function(instruction, picture, hypotheses, references), np.float64)
        if found.shape != (len(hypotheses),) or not np.isfinite(found).all():
            raise ConfigError(
                f"reward {self._spec}: found {found.tolist()} for {instruction!r}, expected {len(hypotheses)} finite numbers, one of each"
            )
        return found


class FunctionReward:
    """A user's function(instruction, picture uint8 [px, px, 3] or None, texts, references) -> one number a text."""

    def __init__(self, tokenizer: Tokenizer, spec: str):
        self._tokenizer, self._function = tokenizer, _Function(spec)

    def __call__(self, hypotheses: np.ndarray, block: Block) -> np.ndarray:
        """hypotheses int [R, n, L] -> float64 [R, n]. Raises ConfigError where the function does not give finite numbers."""
        rows, each = hypotheses.shape[:2]
        references = references_of(block, rows, self._tokenizer)
        rewards = np.zeros((rows, each))
        for row in range(rows):
            picture = None if block.images is None else block.images[row]
            instruction = _instruction(block, row * each, self._tokenizer)
            rewards[row] = self._function(instruction, picture, texts_of(hypotheses[row], self._tokenizer), references[row])
        return rewards


class PictureReward:
    """A user's function(instruction, None, pictures uint8 [n, px, px, 3], [caption]) -> one number a picture."""

    def __init__(self, tokenizer: Tokenizer, spec: str, codec: PictureCodec, *, first_code_id: int):
        self._tokenizer, self._function, self._codec, self._first = tokenizer, _Function(spec), codec, first_code_id

    def __call__(self, hypotheses: np.ndarray, block: Block) -> np.ndarray:
        """hypotheses int [R, n, codes + 1], EOS last -> float64 [R, n]. Raises ConfigError where the function does not give finite
        numbers."""
        rows, each, length = hypotheses.shape
        codes = hypotheses[..., :-1].reshape(-1, length - 1) - self._first
        pictures = pictures_of(codes, self._codec).reshape(rows, each, *self._side(length - 1), 3)
        rewards = np.zeros((rows, each))
        for row in range(rows):
            instruction = _instruction(block, row * each, self._tokenizer)
            rewards[row] = self._function(instruction, None, pictures[row], [instruction.removeprefix(INSTRUCTION).strip()])
        return rewards

    def _side(self, num_codes: int) -> tuple[int, int]:
        side = math.isqrt(num_codes) * self._codec.stride
        return side, side


def _instruction(block: Block, sequence: int, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([int(t) for t in block.source_ids[sequence] if t != PAD_ID][1:-1])
