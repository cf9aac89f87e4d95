"""How often a run's batches draw each source: in closed form from the number of batches, so that nothing is counted or saved.

A source here is a line of the mixture with its split, whichever blocks draw from it. Records drawn in place of rejected ones are not
counted: they are few, or the run stops.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from ofa_jax.config.schema import DataConfig, SourceConfig
from ofa_jax.data.batch import Batch
from ofa_jax.data.mixture import Members, block_selection, rows_before


class Usage:
    """The arithmetic of one config's sources."""

    def __init__(self, data: DataConfig, members: Sequence[Sequence[Members]]):
        """members: what every part of a batch draws of each of its sources (`Pipeline.members`)."""
        self._data, self._blocks = data, data.row_blocks
        self._members = tuple(tuple(part) for part in members)
        self._selections = [
            block_selection(block, members=part, stage_steps=data.stage_steps)
            for block, part in zip(self._blocks, self._members, strict=True)
        ]
        self._records = {
            source_name(source): of_source.total
            for block, part in zip(self._blocks, self._members, strict=True)
            for source, of_source in zip(block.sources, part, strict=True)
        }

    @property
    def records(self) -> Mapping[str, int]:
        """Number of records by `source_name`."""
        return self._records

    def rows(self, num_batches: int) -> dict[str, int]:
        """Returns how many rows the first `num_batches` global batches draw from each source, by `source_name`."""
        drawn = dict.fromkeys(self._records, 0)
        for block, selection in zip(self._blocks, self._selections, strict=True):
            counts = selection.counts(rows_before(block, num_batches))
            for source, count in zip(block.sources, counts, strict=True):
                drawn[source_name(source)] += count
        return drawn

    def epochs(self, num_batches: int) -> dict[str, float]:
        """Returns how often the first `num_batches` global batches draw each record of a source, on average, by `source_name`."""
        return {name: count / self._records[name] for name, count in self.rows(num_batches).items()}

    def epoch(self, block_index: int, element: int) -> int:
        """Returns how often a block has drawn all records of a source before the epoch in which it draws `element` from it."""
        number, earlier = self._selections[block_index][element]
        return earlier // self._members[block_index][number].num_records

    def batch_rows(self, batch: Batch) -> collections.Counter[str]:
        """Returns the rows of a host's batch by dataset."""
        drawn: collections.Counter[str] = collections.Counter()
        for config, selection in zip(self._blocks, self._selections, strict=True):
            elements = batch.blocks[config.name].elements
            before, after = (selection.counts(int(e)) for e in (elements[0], elements[-1] + 1))
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
