"""Reads decoded ids back: boxes and object lists. What is malformed is counted, never an exception, because a model may say anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.config.schema import EOS_ID, PAD_ID, VocabConfig
from ofa_jax.data.records import Box
from ofa_jax.vocab.boxes import bins_to_box
from ofa_jax.vocab.layout import bin_of
from ofa_jax.vocab.tokenizer import Tokenizer


def until_eos(ids: Sequence[int] | np.ndarray) -> list[int]:
    """The ids before the first EOS, without PAD."""
    out = []
    for token in ids:
        if int(token) == EOS_ID:
            break
        if int(token) != PAD_ID:
            out.append(int(token))
    return out


def read_box(ids: Sequence[int], *, vocab: VocabConfig) -> Box | None:
    """The box of the first four ids in pixels of the network input; None unless they are four bins. What follows is not read."""
    bins = [b for b in (bin_of(token, vocab=vocab) for token in ids[:4]) if b is not None]
    if len(bins) < 4:
        return None
    return Box(*bins_to_box(bins, canvas_px=vocab.canvas_px, num_bins=vocab.num_bins))


def read_objects(ids: Sequence[int], *, vocab: VocabConfig, tokenizer: Tokenizer) -> tuple[list[tuple[str, Box]], int]:
    """The objects of "four bins, label" repeated, boxes in pixels of the network input, and the number of malformed parts.

    A part begins with a run of bins, and with the first id where that is no bin; it is malformed unless it has exactly four bins and
    then a label of text ids with at least one character. Malformed parts are left out.
    """
    parts: list[tuple[list[int], list[int]]] = []
    for token in ids:
        is_bin = bin_of(token, vocab=vocab) is not None
        if not parts or (is_bin and parts[-1][1]):
            parts.append(([], []))
        parts[-1][0 if is_bin else 1].append(int(token))
    objects, malformed = [], 0
    for bins, text in parts:
        box = read_box(bins, vocab=vocab) if len(bins) == 4 else None
        label = tokenizer.decode(text).strip() if all(token < vocab.mask_id for token in text) else ""
        if box is None or not label:
            malformed += 1
        else:
            objects.append((label, box))
    return objects, malformed


def to_picture(box: Box, *, image_px: int, width: int, height: int) -> Box:
    """A box of the square network input as pixels of the stored picture, which was squashed to the square."""
    x, y = width / image_px, height / image_px
    return Box(box.x0 * x, box.y0 * y, box.x1 * x, box.y1 * y)
