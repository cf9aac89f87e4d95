"""What written texts are worth to self-critical training (`train/reward`): CIDEr-D with the document frequencies of a corpus, or a user's
function of instruction, picture, texts and references."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import read_function
from ofa_jax.config.schema import EOS_ID, PAD_ID, AnyRun, RunConfig
from ofa_jax.data.batch import Block
from ofa_jax.metrics.cider import cider
from ofa_jax.metrics.document_frequencies import DocumentFrequencies, ended, read_frequencies
from ofa_jax.train.reward import Rewarder
from ofa_jax.vocab.tokenizer import Tokenizer, load_tokenizer

CIDER = "cider"


def rewarder_of(config: AnyRun) -> Rewarder | None:
    """Returns the rewarder of a run with `reward`, None for others. Raises ConfigError for a function that is not there, DataError for a
    file."""
    if not isinstance(config, RunConfig) or not config.reward:
        return None
    [reward] = config.reward
    tokenizer = load_tokenizer(config.vocab)
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


class FunctionReward:
    """A user's function(instruction, picture uint8 [px, px, 3] or None, texts, references) -> one number a text."""

    def __init__(self, tokenizer: Tokenizer, spec: str):
        self._tokenizer, self._spec, self._function = tokenizer, spec, read_function(spec, flag="reward")

    def __call__(self, hypotheses: np.ndarray, block: Block) -> np.ndarray:
        """hypotheses int [R, n, L] -> float64 [R, n]. Raises ConfigError where the function does not give finite numbers."""
        rows, each = hypotheses.shape[:2]
        references = references_of(block, rows, self._tokenizer)
        rewards = np.zeros((rows, each))
        for row in range(rows):
            texts = texts_of(hypotheses[row], self._tokenizer)
            instruction = self._tokenizer.decode([int(t) for t in block.source_ids[row * each] if t != PAD_ID][1:-1])
            found = np.asarray(self._function(instruction, None if block.images is None else block.images[row], texts, references[row]))
            if found.shape != (each,) or not np.isfinite(found).all():
                raise ConfigError(f"reward {self._spec}: found {found.tolist()} for {texts}, expected {each} finite numbers, one of each")
            rewards[row] = found
        return rewards
