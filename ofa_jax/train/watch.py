"""A watch on the data of a run: what its batches are made of, and how often it repeats its sources. All of it from the host's arrays.

Numbers of an interval are means over its batches; with several hosts they are those of the first host's rows, counts times the hosts.

- `data/sequences/<task>`, `data/tokens/<task>`: sequences of the global batch, and their source and target tokens without padding.
- `data/weight_share/<task>`: the part of the loss's weight that the task has. A target token that carries loss weighs its sequence's
  confidence over the number of such tokens in its group (pairs; images and text), as in `train/loss` before anything is dropped.
- `data/useful/<block>`: the part of source and target positions that is no padding, `data/useful_tokens` of all blocks together;
  `data/useful_with_patches/<block>` counts the patches that the encoder sees too.
- `data/accept/<dataset>`: records used over records drawn in the interval.
- `data/rows/<dataset>/<row>`, `data/epochs/<dataset>/<row>`: rows drawn since the run's first batch, and the same over the source's length.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from ofa_jax.config.schema import PAD_ID, AnyRun, RowBlock, RunConfig
from ofa_jax.data.batch import Batch
from ofa_jax.monitor.writers import Number
from ofa_jax.train.hooks import Hook
from ofa_jax.train.pretraining import GROUP_OF_STREAM


class SourceUsage(Protocol):
    """What is asked of `data.usage.Usage`."""

    def rows(self, num_batches: int) -> dict[str, int]: ...

    def epochs(self, num_batches: int) -> dict[str, float]: ...

    def batch_rows(self, batch: Batch) -> Mapping[str, int]: ...

    def repeated(self, num_batches: int) -> dict[str, float]: ...

    def forecast(self, num_batches: int) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class BatchCounts:
    """What one batch is made of."""

    data_step: int
    sequences: np.ndarray  # int [num_tasks]
    tokens: np.ndarray  # int [num_tasks]: source and target, without padding
    weight: np.ndarray  # float [num_tasks]: of the loss; sums to 1, or to 0 where nothing carries loss
    useful: np.ndarray  # int [blocks, 2]: positions of text without padding, and all of them
    patches: np.ndarray  # int [blocks, 2]: positions of patches of pictures, and all of them
    rows: Mapping[str, int]  # by dataset
    rejects: Mapping[str, int]  # by dataset


def count_batch(batch: Batch, blocks: Sequence[RowBlock], *, num_tasks: int, stride: int, rows: Mapping[str, int]) -> BatchCounts:
    """Returns the counts of a host's batch of `blocks`; stride: pixels a patch; rows: those drawn, by dataset."""
    # A padding sequence's task -1 counts in a last bin, which is cut off.
    sequences, tokens = np.zeros(num_tasks + 1, np.int64), np.zeros(num_tasks + 1, np.int64)
    weights: dict[str, np.ndarray] = {}
    num_targets: collections.Counter[str] = collections.Counter()
    useful, patches = np.zeros((len(blocks), 2), np.int64), np.zeros((len(blocks), 2), np.int64)
    for index, config in enumerate(blocks):
        block = batch.blocks[config.name]
        present = np.count_nonzero(block.source_ids != PAD_ID, axis=1) + np.count_nonzero(block.decoder_ids != PAD_ID, axis=1)
        np.add.at(sequences, block.task_ids, 1)
        np.add.at(tokens, block.task_ids, present)
        useful[index] = present.sum(), config.num_positions(len(block.task_ids))
        if block.image_mask is not None and len(block.task_ids):
            each = (config.num_patches or (config.image_px // stride) ** 2) * (len(block.task_ids) // len(block.image_mask))
            patches[index] = each * np.count_nonzero(block.image_mask), each * len(block.image_mask)
        group = GROUP_OF_STREAM.get(config.stream)
        if group is not None:
            targets = np.count_nonzero(block.target_ids != PAD_ID, axis=1)
            np.add.at(weights.setdefault(group, np.zeros(num_tasks + 1)), block.task_ids, block.confidence * targets)
            num_targets[group] += int(targets.sum())
    weight = sum((weights[group] / max(num_targets[group], 1) for group in weights), start=np.zeros(num_tasks + 1))
    return BatchCounts(
        batch.data_step,
        sequences[:num_tasks],
        tokens[:num_tasks],
        weight[:num_tasks] / (weight.sum() or 1.0),
        useful,
        patches,
        rows,
        collections.Counter(reject.dataset for reject in batch.rejects),
    )


class WatchData(Hook):
    """Logs the numbers above, and warns of sources that repeat too often (`data.max_epochs`): at the start of those that the whole run
    will repeat, and of each once when it happens."""

    def __init__(
        self,
        config: AnyRun,
        usage: SourceUsage,
        *,
        task_names: Sequence[str],
        num_hosts: int = 1,
        say: Callable[[str], None] = lambda line: print(line, flush=True),
    ):
        """usage: `data.usage.Usage` of the config. task_names: names by task id. say: takes the lines of warning."""
        self._config, self._usage, self._say = config, usage, say
        self._task_names, self._num_hosts = tuple(task_names), num_hosts
        self._stride = config.model.resnet.stride if isinstance(config, RunConfig) else 1
        self._waiting: collections.deque[BatchCounts] = collections.deque()
        self._warned: set[str] = set()

    def start(self, step: int) -> None:
        for line in self._usage.forecast(self._config.steps):
            self._say(f"WARNING: data: {line}")

    def rewind(self, step: int, *, data_step: int) -> None:
        self._waiting.clear()

    def batch(self, batch: Batch) -> None:
        rows = self._usage.batch_rows(batch)
        blocks = self._config.data.row_blocks
        self._waiting.append(count_batch(batch, blocks, num_tasks=len(self._task_names), stride=self._stride, rows=rows))
        for name, epochs in self._usage.repeated(batch.data_step + 1).items():
            if name not in self._warned:
                self._warned.add(name)
                limit = f"data.max_epochs {self._config.data.max_epochs:g}"
                self._say(f"WARNING: data: {name} was seen {epochs:,.1f} times by step {batch.data_step + 1:,}, more than {limit}")

    def numbers(self, data_step: int) -> Mapping[str, Number]:
        found: list[BatchCounts] = []
        while self._waiting and self._waiting[0].data_step <= data_step:
            found.append(self._waiting.popleft())
        if not found:
            return {}
        return {**self._task_numbers(found), **self._block_numbers(found), **self._source_numbers(found, data_step + 1)}

    def _task_numbers(self, found: Sequence[BatchCounts]) -> dict[str, Number]:
        record: dict[str, Number] = {}
        for index, task in enumerate(self._task_names):
            if any(counts.sequences[index] for counts in found):
                record[f"data/sequences/{task}"] = self._num_hosts * float(np.mean([counts.sequences[index] for counts in found]))
                record[f"data/tokens/{task}"] = self._num_hosts * float(np.mean([counts.tokens[index] for counts in found]))
                if self._config.objective == "ofa":  # the other objectives' losses are no sums over tokens
                    record[f"data/weight_share/{task}"] = float(np.mean([counts.weight[index] for counts in found]))
        return record

    def _block_numbers(self, found: Sequence[BatchCounts]) -> dict[str, Number]:
        useful, patches = (np.sum(values, axis=0) for values in ([c.useful for c in found], [c.patches for c in found]))
        record: dict[str, Number] = {}
        if useful[:, 1].any():
            record["data/useful_tokens"] = float(useful[:, 0].sum() / useful[:, 1].sum())
        for block, text, seen in zip(self._config.data.row_blocks, useful, patches, strict=True):
            if text[1]:
                record[f"data/useful/{block.name}"] = float(text[0] / text[1])
            if text[1] and seen[1]:
                record[f"data/useful_with_patches/{block.name}"] = float((text[0] + seen[0]) / (text[1] + seen[1]))
        return record

    def _source_numbers(self, found: Sequence[BatchCounts], num_batches: int) -> dict[str, Number]:
        rows: collections.Counter[str] = collections.Counter()
        rejects: collections.Counter[str] = collections.Counter()
        for counts in found:
            rows.update(counts.rows)
            rejects.update(counts.rejects)
        record: dict[str, Number] = {
            f"data/accept/{dataset}": rows[dataset] / (rows[dataset] + rejects[dataset]) for dataset in rows if rows[dataset]
        }
        record |= {f"data/rows/{name}": count for name, count in self._usage.rows(num_batches).items()}
        return record | {f"data/epochs/{name}": epochs for name, epochs in self._usage.epochs(num_batches).items()}
