"""Shapes of a block's length classes, chosen from the token lengths of what it draws, and how much of them is padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import BlockConfig, DataConfig, LengthClass, RowBlock
from ofa_jax.data.mixture import Members, class_members, integer_proportions


@dataclasses.dataclass(frozen=True)
class Usefulness:
    """Positions of encoder and decoder that hold a patch or a token, over those that run."""

    useful: float
    run: float
    text_useful: float  # without patches
    text_run: float

    @property
    def share(self) -> float:
        return self.useful / self.run

    @property
    def text_share(self) -> float:
        return self.text_useful / self.text_run

    def __add__(self, other: Usefulness) -> Usefulness:
        return Usefulness(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def choose_classes(
    lengths: np.ndarray, weights: np.ndarray, *, rows: Sequence[int], longest: tuple[int, int], multiple: int = 1
) -> tuple[LengthClass, ...]:
    """Returns classes with the given rows, shorter first, whose shares of the records are those of the rows.

    Each class but the last is bounded so that of the records left at least its share lies within, in few positions.

    Args:
      lengths: uint16 [n, tasks, 2], tokens of source and target of every record's sequences.
      weights: float [n], how often each record is drawn.
      rows: of the classes, in order.
      longest: (source, target) of the last class.
      multiple: bounds are rounded up to it, as hardware likes.

    Raises ConfigError for no records, or rows that are not positive.
    """
    if not len(lengths) or min(rows) < 1:
        raise ConfigError(f"length classes: found {len(lengths)} records and rows {tuple(rows)}, expected at least one of each")
    tasks = lengths.shape[1]
    flat = np.minimum(lengths.reshape(len(lengths), -1), np.tile(longest, tasks)).astype(np.int64)
    left, classes = np.ones(len(lengths), bool), []
    for place, count in enumerate(rows):
        if place + 1 == len(rows):
            bounds = (
                np.tile(longest, tasks) if not left.any() else np.minimum(_up(flat[left].max(axis=0), multiple), np.tile(longest, tasks))
            )
        else:
            share = count / sum(rows[place:])
            bounds = np.minimum(_up(_bounds(flat[left], weights[left], share), multiple), np.tile(longest, tasks))
            left &= ~(flat <= bounds).all(axis=1)
        pairs = bounds.reshape(tasks, 2)
        classes.append(LengthClass(int(count), tuple(map(int, pairs[:, 0])), tuple(map(int, pairs[:, 1]))))
    return tuple(classes)


def _up(values: np.ndarray, multiple: int) -> np.ndarray:
    return -(-np.maximum(values, 2) // multiple) * multiple


def _bounds(lengths: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """Returns small bounds, int64 [columns], within all of which at least `share` of the weight lies.

    From the largest values on, the bound is lowered again and again that loses the least weight for each position it saves.
    """
    need = share * weights.sum() * (1 - 1e-9)
    inside = np.ones(len(lengths), bool)
    bounds = lengths.max(axis=0)
    while True:
        best, best_price, best_value = -1, np.inf, 0
        have = weights[inside].sum()
        for column in range(lengths.shape[1]):
            values, places = np.unique(lengths[inside, column], return_inverse=True)
            if len(values) < 2:
                continue
            lost = have - np.cumsum(np.bincount(places, weights=weights[inside]))[:-1]  # by lowering the bound to each smaller value
            price = np.where(have - lost >= need, lost / (bounds[column] - values[:-1]), np.inf)
            cheapest = int(np.argmin(price))
            if price[cheapest] < best_price:
                best, best_price, best_value = column, float(price[cheapest]), int(values[cheapest])
        if best < 0:
            return bounds
        bounds[best] = best_value
        inside &= lengths[:, best] <= best_value


def usefulness(part: RowBlock, lengths: Sequence[np.ndarray], members: Sequence[Members], *, num_patches: int) -> Usefulness:
    """Returns the useful and the run positions of all rows of one part of a batch, on average.

    lengths, members: of each of the part's sources, as for `mixture.class_members`. num_patches: that a sequence sees, 0 without a picture.
    """
    weights = integer_proportions([line.weight for line in part.sources])
    total = drawn = 0.0
    tasks = lengths[0].shape[1]
    limits = np.array([part.lens_of(task) for task in range(tasks)])
    for table, own, weight in zip(lengths, members, weights, strict=True):
        chosen = table if own.chosen is None else table[own.chosen]
        each = weight / own.total  # how often a record of the source is drawn
        total += each * float(np.minimum(chosen, limits).sum(dtype=np.float64))
        drawn += each * len(chosen)
    useful, run = part.rows * total / drawn, part.rows * float(limits.sum())
    patches = part.rows * tasks * num_patches
    return Usefulness(useful + patches, run + patches, useful, run)


def block_usefulness(block: BlockConfig, lengths: Sequence[np.ndarray], *, num_patches: int) -> Usefulness:
    """Returns the useful and the run positions of a block with all its classes. Arguments as of `usefulness`."""
    parts = DataConfig(blocks=(block,)).row_blocks
    members = class_members(parts, lengths) if block.classes else [tuple(Members(len(table)) for table in lengths)]
    found = [usefulness(part, lengths, own, num_patches=num_patches) for part, own in zip(parts, members, strict=True)]
    return sum(found[1:], start=found[0])


def block_classes(block: BlockConfig, lengths: Sequence[np.ndarray], *, rows: Sequence[int], multiple: int) -> tuple[LengthClass, ...]:
    """Returns classes for a block's sources with the given rows; `lengths` are of each source, see `choose_classes` for the rest."""
    weights = np.concatenate([np.full(len(table), line.weight / len(table)) for table, line in zip(lengths, block.sources, strict=True)])
    longest = (block.source_len, block.target_len)
    return choose_classes(np.concatenate(lengths), weights, rows=rows, longest=longest, multiple=multiple)
