"""The order of a block as arithmetic: element e of the block's endless order -> (source, record index).

Every source of a block is an endless Grain `MapDataset` (seed, shuffle, repeat: a new shuffle every epoch), and an exact selection
map deals the block's elements to the sources. Nothing depends on hosts, workers or the past, so a resume is a slice.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import NamedTuple

import grain
import numpy as np
from grain.python import DatasetSelectionMap

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import BlockConfig, LengthClass, RowBlock, SourceConfig


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


def integer_proportions(weights: Sequence[float], *, shares: Sequence[Fraction] | None = None) -> tuple[int, ...]:
    """The smallest integers in exactly the ratio of `weights` as they are written in decimals: (0.3, 0.7) -> (3, 7).

    shares: factors of the weights; None is 1 for each. Raises DataError for a weight that is not a finite number of 0 or more, and
    when all of them, or their products with the shares, are 0.
    """
    for weight in weights:
        if not (np.isfinite(weight) and weight >= 0):
            raise DataError(f"mixture: field weight: found {weight}, expected a number of 0 or more")
    exact = [Fraction(str(weight)) * share for weight, share in zip(weights, shares or [Fraction(1)] * len(weights), strict=True)]
    if not any(exact):
        raise DataError(f"mixture: field weight: found {', '.join(map(str, weights))}, expected one above 0 of a dataset with records")
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
        later = left * (share - weight) // share if weight else left
        counts.append(left - later)
        left, share = later, share - weight
    return tuple(counts)


class ExactSelection(DatasetSelectionMap):
    """Deals elements to sources in exact integer proportions.

    `MapDataset.mix` rounds proportions to hundredths of the smallest weight (3 : 7 becomes 100 : 233), so an own map is used.
    """

    def __init__(self, *stages: Sequence[int], starts: Sequence[int] = ()):
        """stages: the proportions of each stage. starts: the first elements of the second, third, ... stage, ascending."""
        self._stages = tuple(map(tuple, stages))
        self._starts = (0, *starts)
        counts = (0,) * len(self._stages[0])
        self._counts = [counts]  # of every source before each stage
        for proportions, first, end in zip(self._stages, self._starts, self._starts[1:], strict=False):
            counts = tuple(have + more for have, more in zip(counts, source_counts(end - first, proportions), strict=True))
            self._counts.append(counts)

    def __len__(self) -> int:
        return sys.maxsize

    def counts(self, num_elements: int) -> tuple[int, ...]:
        """How many of the first `num_elements` elements come from each source: exact in every stage."""
        stage = bisect.bisect_right(self._starts, num_elements) - 1
        inside = source_counts(num_elements - self._starts[stage], self._stages[stage])
        return tuple(have + more for have, more in zip(self._counts[stage], inside, strict=True))

    def __getitem__(self, element: int) -> tuple[int, int]:
        """(source, number of earlier elements of that source)."""
        before, after = self.counts(element), self.counts(element + 1)
        source = next(i for i, (b, a) in enumerate(zip(before, after, strict=True)) if a != b)
        return source, before[source]


class Members(NamedTuple):
    """Which records of a source a block draws from."""

    total: int  # records of the source
    chosen: np.ndarray | None = None  # int32, ascending: those of the block's length class; None: all

    @property
    def num_records(self) -> int:
        return self.total if self.chosen is None else len(self.chosen)

    def at(self, place: int) -> int:
        """Returns the record at a place of those that are drawn."""
        return place if self.chosen is None else int(self.chosen[place])


def class_members(parts: Sequence[RowBlock], lengths: Sequence[np.ndarray]) -> list[tuple[Members, ...]]:
    """What each length class of a block draws of each of the block's sources: every record belongs to one class.

    A record belongs to the first class that holds its sequences (the last takes what none holds), but for as many as a later class needs to
    fill its rows: those are spread evenly over the records. So every record of a source comes as often as every other, and the mixture is
    that of the weights (of the first stage), whatever the rows of the classes.

    Args:
      parts: the classes of one block, in order.
      lengths: of each source uint16 [records, tasks, 2], tokens of source and target of every task.

    Raises DataError when there are fewer short records than a class has rows for.
    """
    classes = parts[0].all_classes
    natural = [_natural_class(classes, table) for table in lengths]
    weights = integer_proportions([source.weight for source in parts[0].sources])
    shares = [
        sum(
            (Fraction(weight * int((of == place).sum()), max(len(of), 1)) for weight, of in zip(weights, natural, strict=True)), Fraction(0)
        )
        / sum(weights)
        for place in range(len(classes))
    ]
    gives = _waterfall(shares, [Fraction(part.rows, sum(p.rows for p in parts)) for part in parts], parts)
    members: list[list[Members]] = [[] for _ in parts]
    for of in natural:
        assigned = np.full(len(of), len(classes) - 1, np.uint8)
        for place, row in enumerate(gives):
            chosen = np.flatnonzero(of == place)
            if not len(chosen):
                continue
            ends = np.cumsum([float(give / shares[place]) for give in row])
            assigned[chosen] = np.minimum(np.searchsorted(ends, _spread(len(chosen)), side="right"), len(classes) - 1)
        for place in range(len(parts)):
            members[place].append(Members(len(of), np.flatnonzero(assigned == place).astype(np.int32)))
    return [tuple(part) for part in members]


def _natural_class(classes: Sequence[LengthClass], lengths: np.ndarray) -> np.ndarray:
    """Returns for each record the first class that holds it, uint8 [n]; the last where none does."""
    of = np.full(len(lengths), len(classes) - 1, np.uint8)
    for place in reversed(range(len(classes) - 1)):
        part = classes[place]
        limits = np.array([(_at(part.source_lens, task), _at(part.target_lens, task)) for task in range(lengths.shape[1])])
        of[(lengths <= limits).all(axis=(1, 2))] = place
    return of


def _at(values: Sequence[int], place: int) -> int:
    return values[min(place, len(values) - 1)]


def _waterfall(shares: Sequence[Fraction], rows: Sequence[Fraction], parts: Sequence[RowBlock]) -> list[list[Fraction]]:
    """Returns how much of each class's records each class draws: shorter records fill what the later classes have room for."""
    left = list(shares)
    gives = [[Fraction(0)] * len(rows) for _ in shares]
    for place, need in enumerate(rows):
        for source in range(place + 1):
            give = min(left[source], need)
            gives[source][place], left[source], need = give, left[source] - give, need - give
        if need:
            short = float(sum(shares[: place + 1]))
            raise DataError(
                f"block {parts[place].name}: found {short:.3f} of the records as short as its class and those before it, expected at least "
                f"{float(sum(rows[: place + 1])):.3f}, their share of the rows; "
                "`python launch/prepare.py classes` prints classes that fit the data"
            )
    return gives


def _spread(count: int) -> np.ndarray:
    """Returns `count` numbers in [0, 1), of which any run is spread evenly: multiples of the golden ratio (Weyl 1916)."""
    return np.arange(count, dtype=np.float64) * 0.6180339887498949 % 1.0


class _SourceDraws:
    """A random-access source of Grain: element i is the `Draw` of the i-th record that the block draws from."""

    def __init__(self, source: int, members: Members):
        self._source, self._members = source, members

    def __len__(self) -> int:
        return self._members.num_records

    def __getitem__(self, place: int) -> Draw:
        return Draw(self._source, self._members.at(int(place)))


def block_selection(block: BlockConfig, *, members: Sequence[Members], stage_steps: Sequence[int] = ()) -> ExactSelection:
    """How a block's elements are dealt to its sources, stage by stage; arguments as of `block_order`.

    In a length class a source's weight counts by the share of its records that are in the class, so that all classes together have the
    mixture that the weights say. Raises DataError where a stage has no source with records and a weight.
    """
    shares = [Fraction(part.num_records, max(part.total, 1)) for part in members]
    stages = [[_weight(source, stage) for source in block.sources] for stage in range(len(stage_steps) + 1)]
    starts = [rows_before(block, step) for step in stage_steps]
    return ExactSelection(*(integer_proportions(weights, shares=shares) for weights in stages), starts=starts)


def _weight(source: SourceConfig, stage: int) -> float:
    return source.later_weights[stage - 1] if stage and source.later_weights else source.weight


def block_order(
    block: BlockConfig, *, members: Sequence[Members], seed: int, block_index: int, stage_steps: Sequence[int] = ()
) -> grain.MapDataset[Draw]:
    """The endless order of one block: `order[e]` is the `Draw` of element e, for any e >= 0.

    Args:
      members: what is drawn of each of `block.sources`.
      seed: the run's seed. Each (seed, block, source) has a shuffle of its own, each epoch of a source another one.
      block_index: place of the block in the config.
      stage_steps: batches at which later stages of the mixture begin.

    Raises DataError for a source without records.
    """
    endless = []
    for number, (source, part) in enumerate(zip(block.sources, members, strict=True)):
        if part.total < 1:
            raise DataError(f"block {block.name}: dataset {source.dataset} split {source.split}: found 0 records, expected at least 1")
        if not part.num_records:
            part = Members(1)  # no record of the source is in the class, so that its share is 0: never drawn
        # Grain's shuffle adds the epoch to the seed, so neighbouring seeds would repeat each other's epochs: hash them apart.
        shuffle_seed = int(np.random.SeedSequence([seed, block_index, number]).generate_state(1, np.uint32)[0])
        endless.append(grain.MapDataset.source(_SourceDraws(number, part)).shuffle(seed=shuffle_seed).repeat())
    return grain.MapDataset.select_from_datasets(endless, block_selection(block, members=members, stage_steps=stage_steps))
