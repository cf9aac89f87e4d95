"""Times of beam search, the encoder apart; `launch/bench.py decode` prints them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from ofa_jax.config.schema import ModelConfig, VocabConfig
from ofa_jax.decode.beam import Hypotheses, beam_search
from ofa_jax.decode.rules import DecodeConfig
from ofa_jax.models import ofa
from ofa_jax.models.encoder import Encoded


@dataclasses.dataclass(frozen=True)
class BeamTimes:
    """The fastest of several runs in seconds, compilation left out, and what was found."""

    encoder_s: float  # pictures and sources
    search_s: float
    steps: int  # of the search: the longest hypothesis kept
    ids: np.ndarray  # int32 [rows, max_len + 1], the best hypothesis of each row
    scores: np.ndarray  # float [rows]


def time_beam_search(
    params: Any,
    stats: Any,
    model: ModelConfig,
    vocab: VocabConfig,
    *,
    source_ids: np.ndarray,
    images: np.ndarray,
    config: DecodeConfig,
    precision: str,
    repeats: int,
) -> BeamTimes:
    """Returns the times of encoding `images` uint8 [Q, px, px, 3] with `source_ids` int32 [Q, S] and of the beam search behind it."""
    graphdef, _ = jax.eval_shape(lambda: ofa.create(model, vocab, jax.random.key(0), precision=precision))
    params, stats = jax.device_put((params, stats))

    @jax.jit
    def encode(params: Any, stats: Any, images: jax.Array, source_ids: jax.Array) -> Encoded:
        whole = nnx.merge(graphdef, params)
        return whole.encode(source_ids, whole.embed_images(images, None, stats=stats, train=False)[0])

    @jax.jit
    def search(params: Any, encoded: Encoded) -> Hypotheses:
        return beam_search(nnx.merge(graphdef, params), encoded, None, config=config)

    encoded, encoder_s = _fastest(lambda: encode(params, stats, images, source_ids), repeats)
    found, search_s = _fastest(lambda: search(params, encoded), repeats)
    lengths = np.asarray(found.lengths)
    return BeamTimes(encoder_s, search_s, int(lengths.max()), np.asarray(found.sequences[:, 0]), np.asarray(found.scores[:, 0]))


def _fastest(run: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    result = jax.block_until_ready(run())  # compiles
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return result, min(times)


def compare(ours: BeamTimes, peer: Mapping[str, np.ndarray] | None, *, batch: int) -> list[str]:
    """Returns lines that say the times of searching `batch` rows, and where there is a `peer`, its times, the ratios and whether it found
    the same.

    peer: `encoder_s` and `search_s`, float [], `ids`, int [batch, length], and `scores`, float [batch], of the same inputs.
    """
    lines = [_times("ofa_jax", ours.encoder_s, ours.search_s, batch, ours.steps)]
    if peer is not None:
        encoder_s, search_s = float(peer["encoder_s"]), float(peer["search_s"])
        whole = (encoder_s + search_s) / (ours.encoder_s + ours.search_s)
        equal = int((peer["ids"] == ours.ids).all(1).sum())
        difference = float(np.abs(peer["scores"] - ours.scores).max())
        lines += [
            _times("peer", encoder_s, search_s, batch, ours.steps),
            f"ratio: search {search_s / ours.search_s:.2f}, encoder {encoder_s / ours.encoder_s:.2f}, whole {whole:.2f}",
            f"equal tokens in {equal} of {batch} rows, scores differ by at most {difference:.1e}",
        ]
    return lines


def _times(name: str, encoder_s: float, search_s: float, batch: int, steps: int) -> str:
    whole = batch / (encoder_s + search_s)
    step = f"{search_s / steps * 1e3:.1f} a step"
    return f"{name:8} encoder {encoder_s * 1e3:9.1f} ms   search {search_s * 1e3:9.1f} ms ({step})   {whole:.2f} images/s"
