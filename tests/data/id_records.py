"""Twenty million records of which only the ids exist, for the order of a whole pretraining mixture. Worker processes import this module."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from ofa_jax.config.schema import BlockConfig, DataConfig, LengthClass, SourceConfig
from ofa_jax.data.batch import Batch, Row, Sequence
from ofa_jax.data.pipeline import Pipeline
from ofa_jax.data.records import Record, TextRecord
from ofa_jax.data.typical_lengths import draw_lengths

RECORDS = {"cc12m": 12_400_000, "cc3m": 3_300_000, "sbu": 1_000_000, "vg_regions": 3_300_000}  # 20 million
WEIGHTS = {"cc12m": 10.81, "cc3m": 2.89, "sbu": 0.87, "vg_regions": 2.88}
ROWS = 448  # 7 hosts and 64 hosts divide it
FIRST_ID = 10


def lines() -> tuple[SourceConfig, ...]:
    return tuple(SourceConfig(name, "grounding" if name == "vg_regions" else "caption", weight) for name, weight in WEIGHTS.items())


PLAIN = BlockConfig("plain", "text", ROWS, 8, 8, lines())
CLASSES = (LengthClass(ROWS, (16, 40), (24, 8)), LengthClass(ROWS, (64, 128), (64, 64)))
CLASSED = BlockConfig("classed", "text", 2 * ROWS, 128, 64, lines(), classes=CLASSES)


def config(*blocks: BlockConfig, num_workers: int = 0) -> DataConfig:
    return DataConfig(dir="nowhere", blocks=blocks, num_workers=num_workers, prefetch=2)


class IdSource:
    """A RecordSource of `RECORDS[dataset]` records, which are made when they are read; token lengths lie in a file."""

    def __init__(self, source: SourceConfig, folder: str):
        self._dataset, self._folder = source.dataset, folder

    def __len__(self) -> int:
        return RECORDS[self._dataset]

    def __getitem__(self, index: int) -> Record:
        return TextRecord(str(index), self._dataset, "text")

    def read(self, indices: list[int]) -> list[Record]:
        return [self[index] for index in indices]

    def sequence_lengths(self, row: str) -> np.ndarray:
        return np.load(f"{self._folder}/{self._dataset}.npy", mmap_mode="r")


class Open:
    def __init__(self, folder: str):
        self._folder = folder

    def __call__(self, source: SourceConfig) -> IdSource:
        return IdSource(source, self._folder)


def build_row(block: BlockConfig, source: SourceConfig, record: Record, draw: np.random.Generator) -> Row:
    """One sequence whose ids are the digits of the record's id and a drawn one; two where the block has length classes."""
    ids = [FIRST_ID + int(digit) for digit in record.record_id][:6]
    sequence = Sequence(ids, [FIRST_ID + int(draw.integers(10))], 1.0, False, list(RECORDS).index(source.dataset), 0)
    return Row(None, False, (sequence,) * (2 if block.lens_of(0) != (8, 8) else 1))


def write_lengths(folder: Path) -> None:
    """Writes token lengths of every record as the data sets have them, 160 MB in all; drawn for a tenth and repeated."""
    draw = np.random.default_rng(0)
    for line in lines():
        count = RECORDS[line.dataset]
        drawn = draw_lengths(line.dataset, line.row, count // 10, draw)
        np.save(folder / f"{line.dataset}.npy", np.resize(drawn, (count, 2, 2)))


def pipeline(data: DataConfig, folder: Path | str, *, host: int = 0, num_hosts: int = 1) -> Pipeline:
    return Pipeline(data, 3, build_row, Open(str(folder)), host, num_hosts)


def resident_mb(pid: int) -> float:
    """Returns the resident memory of a process of its own, without pages of files, in MB."""
    fields = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("RssAnon")) / 1024


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def measure_worker(folder: str, steps: int) -> None:
    """Prints the resident memory of the one worker after its first batch and after `steps` more, of a mixture and of a tiny one."""
    start = 1_000_000
    for blocks, records in (((BlockConfig("tiny", "text", ROWS, 8, 8, lines()),), 100), ((PLAIN, CLASSED), 0)):
        known = dict(RECORDS)
        if records:
            RECORDS.update(dict.fromkeys(RECORDS, records))
        with pipeline(config(*blocks, num_workers=1), folder).iterate(start) as batches:
            next(batches)
            [worker] = [pid for pid in children(os.getpid()) if "multiprocessing" in Path(f"/proc/{pid}/cmdline").read_text()][-1:]
            before = resident_mb(worker)
            for _ in range(steps):
                batch: Batch = next(batches)
            assert batch.data_step == start + steps
            time.sleep(0.5)
            print(f"{before:.1f} {resident_mb(worker):.1f}", flush=True)
        RECORDS.update(known)
