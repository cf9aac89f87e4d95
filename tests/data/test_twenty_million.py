"""The order of a mixture of twenty million records: a start anywhere at once, the same batches for any hosts and workers, little memory."""

from __future__ import annotations

import collections
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ofa_jax.data.batch import Batch
from tests.data import id_records
from tests.data.id_records import CLASSED, PLAIN, RECORDS, ROWS, WEIGHTS, config, pipeline

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.full  # twenty million token lengths are read again for every host and worker

START = 1_000_000  # batches
MOST_MB = 600  # above a worker that reads hardly any records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lengths")
    id_records.write_lengths(made)
    return made


@pytest.fixture(scope="module")
def whole(folder: Path) -> Batch:
    """The global batch on one host without workers, and that it comes at once."""
    made = pipeline(config(PLAIN, CLASSED), folder)
    made.batch(0)  # imports, and the page cache of the lengths
    began = time.perf_counter()
    batch = pipeline(config(PLAIN, CLASSED), folder).batch(START)
    took = time.perf_counter() - began
    assert took < 2.0, f"a start at batch {START:,} took {took:.2f} s"
    return batch


def rows(batches: list[Batch], name: str) -> np.ndarray:
    """Returns source and target ids of a block's sequences, hosts one after the other."""
    blocks = [batch.blocks[name] for batch in batches]
    return np.concatenate([np.concatenate([block.source_ids, block.target_ids], axis=1) for block in blocks])


@pytest.mark.parametrize("num_hosts", [1, 2, 7, 64])
def test_any_number_of_hosts_makes_the_same_global_batch(folder: Path, whole: Batch, num_hosts: int):
    blocks = (PLAIN, CLASSED) if num_hosts < 64 else (PLAIN,)  # each host reads all lengths: 64 times would take a minute here
    parts = [pipeline(config(*blocks), folder, host=host, num_hosts=num_hosts).batch(START) for host in range(num_hosts)]
    for name in parts[0].blocks:
        np.testing.assert_array_equal(rows(parts, name), rows([whole], name))
        elements = np.concatenate([part.blocks[name].elements for part in parts])
        np.testing.assert_array_equal(elements, whole.blocks[name].elements)


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_any_number_of_workers_makes_the_same_batches(folder: Path, whole: Batch, num_workers: int):
    with pipeline(config(PLAIN, CLASSED, num_workers=num_workers), folder).iterate(START) as batches:
        first = next(batches)
    for name in whole.blocks:
        np.testing.assert_array_equal(rows([first], name), rows([whole], name))


def test_counts_are_exact(folder: Path):
    """In any stretch of a block each source has its share, to less than one record at either end, and none comes twice before all came
    once."""
    made = pipeline(config(PLAIN), folder)
    drawn = collections.Counter()
    ids: dict[str, list[int]] = collections.defaultdict(list)
    steps = 40
    for step in range(START, START + steps):
        block = made.batch(step).blocks["plain"]
        for task, source in zip(block.task_ids, block.source_ids, strict=True):
            name = list(RECORDS)[task]
            drawn[name] += 1
            ids[name].append(int("".join(str(token - id_records.FIRST_ID) for token in source if token >= id_records.FIRST_ID)))
    for name, weight in WEIGHTS.items():
        assert abs(drawn[name] - steps * ROWS * weight / sum(WEIGHTS.values())) < 2, name
    # Six digits of the id are shown, so that a few may agree by chance; a source that repeated itself would show many.
    assert all(len(set(found)) > 0.97 * len(found) for found in ids.values())


def test_memory_of_a_worker_is_bounded_and_does_not_grow(folder: Path):
    program = f"from tests.data.id_records import measure_worker; measure_worker({str(folder)!r}, 60)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (idle, _), (early, late) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert early - idle < MOST_MB and late - idle < MOST_MB, (idle, early, late)
    assert late - early < 20, (early, late)
