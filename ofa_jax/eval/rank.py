"""Ranks the hypotheses of a search by a function that its user gives, as OFA ranks the pictures that it draws by CLIP (paper, section
4.2.3: 24 samples a text, of which the one that CLIP likes best is kept).

    def longest(instruction: str, picture: np.ndarray | None, predictions: list) -> list[float]:
        return [len(text) for text in predictions]

One call an example: `picture` is the network input, uint8 [px, px, 3], and `predictions` are what predictions.jsonl would hold: texts,
boxes [x0, y0, x1, y1] (None where malformed), or lists of {"label", "box"}; of codes they are the pictures that these draw, uint8
[px, px, 3]. The greatest score wins; of equal ones the likelier hypothesis.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.load import read_function
from ofa_jax.config.schema import VocabConfig
from ofa_jax.eval.codec import PictureCodec, pictures_of
from ofa_jax.eval.collect import Examples
from ofa_jax.eval.predict import Decoded
from ofa_jax.eval.scoring import json_ready, read_prediction
from ofa_jax.vocab.tokenizer import Tokenizer

Scorer = Callable[[str, "np.ndarray | None", list[Any]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class NamedScorer:
    """A scorer and the name that errors give it."""

    name: str
    function: Scorer

    @classmethod
    @functools.cache  # its file may load a large model
    def load(cls, spec: str) -> NamedScorer:
        """Returns the function that "FILE.py:function" names, read once a process. Raises ConfigError where there is none."""
        return cls(spec, read_function(spec, flag="scorer"))

    def digest(self) -> str:
        """Returns a digest of the file it is in: another version of it makes other results."""
        return hashlib.sha256(Path(self.name.rpartition(":")[0]).read_bytes()).hexdigest()

    def order(self, instruction: str, picture: np.ndarray | None, predictions: list[Any]) -> tuple[list[int], list[float]]:
        """Returns the places of `predictions`, best first, and the score of each place.

        Raises ConfigError where the function does not give one finite number a prediction.
        """
        scores = np.asarray(self.function(instruction, picture, predictions), np.float64)
        if scores.shape != (len(predictions),) or not np.isfinite(scores).all():
            raise ConfigError(
                f"scorer {self.name}: found {scores.tolist()} for {instruction!r}, expected {len(predictions)} finite numbers, one of each"
            )
        return np.argsort(-scores, kind="stable").tolist(), scores.tolist()


def shown_codes(codes: Sequence[Sequence[int]], codec: PictureCodec | None) -> list[np.ndarray]:
    """Returns the picture of each list of codes. Raises DataError without a codec."""
    if codec is None:
        raise DataError("scorer: found nothing that draws codes in data.dir (vqgan.npz or codebook.npz), expected it: it is shown pictures")
    return list(pictures_of(np.asarray(codes), codec))


def ranked(
    examples: Examples,
    found: Decoded,
    scorer: NamedScorer,
    *,
    vocab: VocabConfig,
    tokenizer: Tokenizer,
    codec: PictureCodec | None = None,
) -> Decoded:
    """Returns what was decoded with every example's hypotheses in the scorer's order, and its score of the best as `rank_scores`.

    codec: what draws codes. Raises DataError where there are codes and no codec, and as `NamedScorer.order`.
    """
    ids, others = list(found.ids), list(found.others)
    scores, other_scores, best = found.scores.copy(), list(found.other_scores), np.zeros(len(ids))
    for i, example in enumerate(examples.examples):
        written = [ids[i], *others[i]]
        predictions = [json_ready(read_prediction(examples, example, row, vocab=vocab, tokenizer=tokenizer)[0]) for row in written]
        if examples.task.output == "codes":
            predictions = shown_codes(predictions, codec)
        picture = examples.images[example.picture] if len(examples.images) else None
        order, given = scorer.order(tokenizer.decode(example.sequence.source_ids), picture, predictions)
        likely = [float(scores[i]), *other_scores[i]]
        ids[i], others[i] = written[order[0]], [written[j] for j in order[1:]]
        scores[i], other_scores[i], best[i] = likely[order[0]], [likely[j] for j in order[1:]], given[order[0]]
    return Decoded(ids, scores, others, other_scores, best)
