"""How often a run's batches draw each source: in closed form from the number of batches, so that nothing is counted or saved.

A source here is a line of the mixture with its split, whichever blocks draw from it. Records drawn in place of rejected ones are not
counted: they are few, or the run stops.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from ofa_jax.config.schema import DataConfig, SourceConfig
from ofa_jax.data.batch import Batch
from ofa_jax.data.mixture import integer_proportions, rows_before, source_counts


class Usage:
    """The arithmetic of one config's sources."""

    def __init__(self, data: DataConfig, lengths: Sequence[Sequence[int]]):
        """lengths: number of records of every source of every block (`Pipeline.lengths`)."""
        self._data = data
        self._lengths = tuple(tuple(block) for block in lengths)
        self._proportions = [integer_proportions([source.weight for source in block.sources]) for block in data.blocks]
        self._records = {
            source_name(source): length
            for block, of_block in zip(data.blocks, self._lengths, strict=True)
            for source, length in zip(block.sources, of_block, strict=True)
        }

    @property
    def records(self) -> Mapping[str, int]:
        """Number of records by `source_name`."""
        return self._records

    def rows(self, num_batches: int) -> dict[str, int]:
        """Returns how many rows the first `num_batches` global batches draw from each source, by `source_name`."""
        drawn = dict.fromkeys(self._records, 0)
        for block, proportions in zip(self._data.blocks, self._proportions, strict=True):
            counts = source_counts(rows_before(block, num_batches), proportions)
            for source, count in zip(block.sources, counts, strict=True):
                drawn[source_name(source)] += count
        return drawn

    def epochs(self, num_batches: int) -> dict[str, float]:
        """Returns how often the first `num_batches` global batches draw each record of a source, on average, by `source_name`."""
        return {name: count / self._records[name] for name, count in self.rows(num_batches).items()}

    def epoch(self, block_index: int, element: int) -> int:
        """Returns how often a block has drawn all records of a source before the epoch in which it draws `element` from it."""
        before, after = (source_counts(e, self._proportions[block_index]) for e in (element, element + 1))
        number = next(i for i, (b, a) in enumerate(zip(before, after, strict=True)) if a != b)
        return before[number] // self._lengths[block_index][number]

    def batch_rows(self, batch: Batch) -> collections.Counter[str]:
        """Returns the rows of a host's batch by dataset."""
        drawn: collections.Counter[str] = collections.Counter()
        for config, proportions in zip(self._data.blocks, self._proportions, strict=True):
            elements = batch.blocks[config.name].elements
            before, after = (source_counts(int(e), proportions) for e in (elements[0], elements[-1] + 1))
            for source, b, a in zip(config.sources, before, after, strict=True):
                drawn[source.dataset] += a - b
        return drawn

    def repeated(self, num_batches: int) -> dict[str, float]:
        """Returns the epochs of the sources that pass `data.max_epochs` within `num_batches` batches; none where that is 0."""
        limit = self._data.max_epochs
        return {name: epochs for name, epochs in self.epochs(num_batches).items() if limit and epochs > limit}

    def forecast(self, num_batches: int) -> list[str]:
        """Returns a sentence for each source that passes `data.max_epochs` within a run of `num_batches` batches."""
        limit = self._data.max_epochs
        return [
            f"{name} will be seen {epochs:,.1f} times by step {num_batches:,}, more than data.max_epochs {limit:g}: it has "
            f"{self._records[name]:,} records"
            for name, epochs in self.repeated(num_batches).items()
        ]


def source_name(source: SourceConfig) -> str:
    """Returns `dataset/row` of a line of a mixture, and its split behind it where that is not `train`."""
    return f"{source.dataset}/{source.row}" + ("" if source.split == "train" else f"/{source.split}")
