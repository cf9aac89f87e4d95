"""The order of a block as arithmetic: element e of the block's endless order -> (source, record index).

Every source of a block is an endless Grain `MapDataset` (seed, shuffle, repeat: a new shuffle every epoch), and an exact selection
map deals the block's elements to the sources. Nothing depends on hosts, workers or the past, so a resume is a slice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import NamedTuple

import grain
import numpy as np
from grain.python import DatasetSelectionMap

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import BlockConfig


class Draw(NamedTuple):
    """Where an element of a block comes from."""

    source: int  # index into `BlockConfig.sources`
    record: int  # index into that source's records


def rows_before(block: BlockConfig, data_step: int) -> int:
    """Number of elements of `block` that the global batches before `data_step` used: the first element of that batch."""
    return block.rows * data_step


def host_rows(block: BlockConfig, *, host: int, num_hosts: int) -> range:
    """Rows of the global block that host `host` of `num_hosts` makes. Raises DataError where the rows do not divide evenly."""
    if block.rows % num_hosts:
        raise DataError(f"block {block.name}: field rows: found {block.rows}, expected a multiple of the {num_hosts} hosts")
    per_host = block.rows // num_hosts
    return range(host * per_host, (host + 1) * per_host)


def integer_proportions(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest integers in exactly the ratio of `weights` as they are written in decimals: (0.3, 0.7) -> (3, 7).

    Raises DataError for a weight that is not a positive finite number.
    """
    for weight in weights:
        if not (np.isfinite(weight) and weight > 0):
            raise DataError(f"mixture: field weight: found {weight}, expected a positive number")
    exact = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = int(np.gcd.reduce(np.array(whole, dtype=object)))
    return tuple(weight // divisor for weight in whole)


def source_counts(num_elements: int, proportions: Sequence[int]) -> tuple[int, ...]:
    """How many of the first `num_elements` elements come from each source.

    Exact at every multiple of `sum(proportions)`; in between each source is less than one element per source away from its share.
    """
    counts = []
    left, share = num_elements, sum(proportions)
    for weight in proportions:
        later = left * (share - weight) // share
        counts.append(left - later)
        left, share = later, share - weight
    return tuple(counts)


class ExactSelection(DatasetSelectionMap):
    """Deals elements to sources in exact integer proportions.

    `MapDataset.mix` rounds proportions to hundredths of the smallest weight (3 : 7 becomes 100 : 233), so an own map is used.
    """

    def __init__(self, proportions: Sequence[int]):
        self._proportions = tuple(proportions)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, element: int) -> tuple[int, int]:
        """(source, number of earlier elements of that source)."""
        before = source_counts(element, self._proportions)
        after = source_counts(element + 1, self._proportions)
        source = next(i for i, (b, a) in enumerate(zip(before, after, strict=True)) if a != b)
        return source, before[source]


class _SourceDraws:
    """A random-access source of Grain: element i is `Draw(source, i)`."""

    def __init__(self, source: int, length: int):
        self._source, self._length = source, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, record: int) -> Draw:
        return Draw(self._source, int(record))


def block_order(block: BlockConfig, *, lengths: Sequence[int], seed: int, block_index: int) -> grain.MapDataset[Draw]:
    """The endless order of one block: `order[e]` is the `Draw` of element e, for any e >= 0.

    Args:
      lengths: number of records of each of `block.sources`.
      seed: the run's seed. Each (seed, block, source) has a shuffle of its own, each epoch of a source another one.
      block_index: place of the block in the config.

    Raises DataError for a source without records.
    """
    endless = []
    for number, (source, length) in enumerate(zip(block.sources, lengths, strict=True)):
        if length < 1:
            raise DataError(f"block {block.name}: dataset {source.dataset} split {source.split}: found 0 records, expected at least 1")
        # Grain's shuffle adds the epoch to the seed, so neighbouring seeds would repeat each other's epochs: hash them apart.
        shuffle_seed = int(np.random.SeedSequence([seed, block_index, number]).generate_state(1, np.uint32)[0])
        endless.append(grain.MapDataset.source(_SourceDraws(number, length)).shuffle(seed=shuffle_seed).repeat())
    selection = ExactSelection(integer_proportions([source.weight for source in block.sources]))
    return grain.MapDataset.select_from_datasets(endless, selection)
