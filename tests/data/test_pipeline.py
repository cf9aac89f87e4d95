"""Batches are a pure function of (config, seed, data_step), for any number of hosts and workers, and after any resume."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import SourceConfig
from ofa_jax.data import pipeline as pipeline_module
from ofa_jax.data.batch import Batch
from ofa_jax.data.pipeline import Pipeline, row_generator
from ofa_jax.data.quarantine import Quarantine
from ofa_jax.data.records import Record, RecordError
from tests.data.memory_records import BAD_RECORDS, LENGTHS, DamagedSource, MemorySource, build_row, data_config, open_damaged, open_memory


def make(**changes: object) -> Pipeline:
    options = {"data": data_config(), "seed": 1, "build_row": build_row, "open_source": open_damaged} | changes
    return Pipeline(**options)


def assert_equal(first: Batch, second: Batch) -> None:
    assert first.data_step == second.data_step
    assert first.rejects == second.rejects
    assert list(first.blocks) == list(second.blocks)
    for name, block in first.blocks.items():
        for field, one, other in zip(block._fields, block, second.blocks[name], strict=True):
            assert (one is None) == (other is None), (name, field)
            if one is not None:
                assert one.dtype == other.dtype, (name, field)
                np.testing.assert_array_equal(one, other, err_msg=f"{name} {field}")


def test_a_batch_is_a_pure_function_of_its_step():
    one, other = make(), make()
    later = one.batch(9)
    assert_equal(one.batch(2), other.batch(2))
    assert_equal(later, other.batch(9))
    assert not np.array_equal(later.blocks["pairs"].source_ids, one.batch(2).blocks["pairs"].source_ids)
    assert not np.array_equal(make(seed=2).batch(9).blocks["pairs"].source_ids, later.blocks["pairs"].source_ids)


def test_shapes_and_elements_of_a_batch():
    batch = make().batch(3)
    pairs, texts = batch.blocks.values()
    assert pairs.images.shape == (14, 16, 16, 3) and pairs.source_ids.shape == (28, 6) and pairs.target_ids.shape == (28, 5)
    assert texts.images is None and texts.source_ids.shape == (14, 6)
    np.testing.assert_array_equal(pairs.elements, np.arange(42, 56))
    np.testing.assert_array_equal(texts.elements, np.arange(42, 56))


@pytest.mark.parametrize("num_hosts", [2, 7])
def test_hosts_make_the_rows_of_the_global_batch(num_hosts: int):
    whole = make().batch(5)
    parts = [make(host=host, num_hosts=num_hosts).batch(5) for host in range(num_hosts)]
    for name, block in whole.blocks.items():
        for number, values in enumerate(block):
            if values is not None:
                np.testing.assert_array_equal(values, np.concatenate([part.blocks[name][number] for part in parts]))
    assert sorted(whole.rejects) == sorted(itertools.chain.from_iterable(part.rejects for part in parts))


def test_an_uneven_number_of_hosts_is_refused():
    with pytest.raises(DataError, match="block pairs: field rows: found 14, expected a multiple of the 3 hosts"):
        make(num_hosts=3)


def test_an_epoch_shows_every_record_once():
    source = (SourceConfig("prose", "text_infilling"),)
    block = dataclasses.replace(data_config().blocks[1], rows=10, sources=source)
    pipeline = make(data=data_config(blocks=(block,)), open_source=open_memory)
    for epoch in range(2):
        seen = np.concatenate([pipeline.batch(4 * epoch + step).blocks["texts"].source_ids[:, 1] for step in range(4)])
        assert sorted(seen - 50) == list(range(LENGTHS["prose"]))


def test_two_epochs_augment_the_same_picture_differently():
    pictures: dict[int, list[np.ndarray]] = {}
    pipeline = make(open_source=open_memory)
    for step in range(6):
        block = pipeline.batch(step).blocks["pairs"]
        for number, image in zip(block.source_ids[::2, 1], block.images, strict=True):
            pictures.setdefault(int(number), []).append(image)
    seen_twice = [images for images in pictures.values() if len(images) > 1]
    assert seen_twice and any(not np.array_equal(images[0], images[1]) for images in seen_twice)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_any_number_of_workers_gives_the_same_batches(num_workers: int):
    pipeline = make(data=data_config(num_workers=num_workers, prefetch=4))
    reference = make()
    with pipeline.iterate(7) as batches:  # a resume: the position is the step alone
        for step in range(7, 13):
            batch = next(batches)
            assert_equal(batch, reference.batch(step))
            assert batch.blocks["pairs"].images.flags.writeable and batch.blocks["pairs"].images.flags.c_contiguous
    with pytest.raises(StopIteration):
        next(batches)


def test_rows_have_streams_of_their_own():
    keys = [(seed, block, element, retry) for seed in (0, 1) for block in (0, 1) for element in (0, 1, 2**40) for retry in (0, 1)]
    draws = {tuple(row_generator(seed=s, block_index=b, element=e, retry=r).integers(0, 2**32, 8).tolist()) for s, b, e, r in keys}
    assert len(draws) == len(keys)
    first = row_generator(seed=0, block_index=0, element=0, retry=0).integers(0, 2**63, 10_000)
    second = row_generator(seed=0, block_index=0, element=1, retry=0).integers(0, 2**63, 10_000)
    assert not np.intersect1d(first, second).size, "streams of neighbouring elements do not overlap"


def test_rejected_records_are_replaced_from_their_own_source_and_reported_again_on_a_rerun():
    damaged, whole = make(), make(open_source=open_memory)
    rejects = 0
    for step in range(6):
        batch, undamaged = damaged.batch(step), whole.batch(step)
        assert_equal(batch, damaged.batch(step))
        assert all((reject.dataset, int(reject.record[1:])) in BAD_RECORDS for reject in batch.rejects)
        changed = sum(int((batch.blocks[name].source_ids != undamaged.blocks[name].source_ids).any(axis=1).sum()) for name in batch.blocks)
        assert changed <= 2 * len(batch.rejects), "only rows whose record was rejected change"
        rejects += len(batch.rejects)
    # 84 pictures, three quarters of them from 23 of which 2 are bad, and 84 texts, of 40 of which one is bad
    assert 4 <= rejects <= 16


def test_rejected_records_leave_no_cycles_behind():
    """An exception that is kept holds the frames that it came through; a cycle of both would keep pictures for hours."""

    def picky(block, source, record: Record, draw) -> object:
        if draw.random() < 0.3:
            raise RecordError(dataset=source.dataset, record=record.record_id, reason="mood", field="row", found="bad", expected="good")
        return build_row(block, source, record, draw)

    pipeline = make(build_row=picky)
    pipeline.batch(0)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        assert {reject.reason for step in range(1, 8) for reject in pipeline.batch(step).rejects} > {"mood"}
        gc.collect()
        assert not [kept for kept in gc.garbage if isinstance(kept, RecordError)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_a_rejection_by_the_row_builder_counts_too():
    def refuse_odd(block, source, record, draw):
        number = int(record.record_id.split("-")[1])
        if number % 2:
            raise RecordError(dataset=source.dataset, record=record.record_id, reason="image", field="image", found="odd", expected="even")
        return build_row(block, source, record, draw)

    batch = make(build_row=refuse_odd, open_source=open_memory).batch(0)
    assert batch.rejects and all(reject.reason == "image" for reject in batch.rejects)
    assert (batch.blocks["texts"].source_ids[:, 1] % 2 == 0).all()


def test_a_source_without_a_usable_record_is_one_sentence():
    def refuse(block, source, record, draw):
        raise RecordError(dataset=source.dataset, record=record.record_id, reason="image", field="image", found="x", expected="y")

    with pytest.raises(DataError, match="block pairs: row 0: 9 draws from dataset .* gave no usable record; the last one: "):
        make(build_row=refuse).batch(0)


def test_the_stop_rule_ends_the_iteration_and_lists_the_rejects(tmp_path: Path):
    path = tmp_path / "rejects.jsonl"
    quarantine = Quarantine(path, max_fraction=0.01, grace=56)
    pipeline = make(quarantine=quarantine)
    batches = pipeline.iterate(0)
    seen = []
    with pytest.raises(DataError, match=f"rejected, which is more than .*schema in dataset shapes .*{path}"):
        for batch in batches:
            seen.append(batch)
    expected = [make().batch(step) for step in range(quarantine.rows // 28)]
    assert len(seen) == len(expected) - 1 and quarantine.rows >= 56
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    listed = [{"data_step": batch.data_step, **reject._asdict()} for batch in expected for reject in batch.rejects if not reject.retry]
    assert lines == listed


def test_a_damaged_record_is_listed_once_an_epoch(tmp_path: Path):
    source = (SourceConfig("shapes", "caption"),)
    block = dataclasses.replace(data_config().blocks[0], rows=LENGTHS["shapes"], sources=source)
    damaged = sorted(f"#{number}" for dataset, number in BAD_RECORDS if dataset == "shapes")
    quarantine = Quarantine(tmp_path / "rejects.jsonl", max_fraction=0.5, grace=0)
    with make(data=data_config(blocks=(block,)), quarantine=quarantine).iterate(0) as batches:
        met_again = sum(reject.retry > 0 for _ in range(60) for reject in next(batches).rejects)
    assert met_again, "some replacement was damaged too"
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    for epoch in range(60):
        assert sorted(line["record"] for line in lines if line["data_step"] == epoch) == damaged


def test_one_of_several_hosts_only_lists(tmp_path: Path):
    quarantine = Quarantine(tmp_path / "rejects.jsonl", max_fraction=0.0, grace=0)
    with make(quarantine=quarantine, host=0, num_hosts=2).iterate(0) as batches:
        for _ in range(4):
            next(batches)
    assert quarantine.rejected > 0 and quarantine.rows == 4 * 14


class FlakySource(MemorySource):
    """Fails with an input error a given number of times."""

    def __init__(self, dataset: str, failures: int):
        super().__init__(dataset)
        self.failures = failures

    def __getitem__(self, index: int) -> Record:
        if self.failures:
            self.failures -= 1
            raise OSError(5, "the disk is away")
        return super().__getitem__(index)


def test_input_errors_are_retried_and_reject_nothing(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(pipeline_module.time, "sleep", waits.append)
    flaky = make(open_source=lambda source: FlakySource(source.dataset, failures=2))
    assert_equal(flaky.batch(0), make(open_source=open_memory).batch(0))
    assert waits == [0.25, 0.5] * 3, "every source failed twice"


def test_lasting_input_errors_end_with_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline_module.time, "sleep", lambda seconds: None)
    dead = make(open_source=lambda source: FlakySource(source.dataset, failures=10**9))
    with pytest.raises(DataError, match="reading dataset shapes split train failed 3 times, the last time with: OSError: .*disk is away"):
        dead.batch(0)


def test_a_missing_dataset_is_an_error_of_iterate():
    def missing(source: SourceConfig) -> MemorySource:
        raise FileNotFoundError(2, "no such folder", "data/shapes")

    with pytest.raises(DataError, match="opening dataset shapes split train: .*no such folder"):
        make(open_source=missing, data=data_config(num_workers=2)).iterate(0)


def test_sources_are_opened_once_for_all_blocks():
    opened = []

    def open_and_count(source: SourceConfig) -> MemorySource:
        opened.append(source.dataset)
        return DamagedSource(source.dataset)

    pipeline = make(open_source=open_and_count)
    pipeline.batch(0)
    pipeline.batch(1)
    assert sorted(opened, key=str) == ["letters", "prose", "shapes"]


def test_a_dataset_is_opened_again_where_a_line_reads_its_codes():
    """Side shards of codes are joined when records are opened: lines with and without them share a dataset, not its records."""
    opened = []

    def open_and_count(source: SourceConfig) -> MemorySource:
        opened.append((source.dataset, source.code_area))
        return MemorySource(source.dataset)

    pairs, texts = data_config().blocks
    lines = tuple(SourceConfig("shapes", row) for row in ("caption", "grounding", "image_infilling"))
    make(open_source=open_and_count, data=data_config(blocks=(dataclasses.replace(pairs, sources=lines), texts))).batch(0)
    assert sorted(opened, key=str) == [("prose", None), ("shapes", "central"), ("shapes", None)]


def test_steps_before_the_first_are_refused():
    with pytest.raises(ValueError, match="data_step: found -1, expected 0 or more"):
        make().batch(-1)


def test_close_ends_every_iterator_and_may_be_called_again():
    pipeline = make()
    first, second = pipeline.iterate(0), pipeline.iterate(5)
    next(first), next(second)
    pipeline.close()
    pipeline.close()
    for batches in (first, second):
        with pytest.raises(StopIteration):
            next(batches)


def test_an_error_in_a_thread_reaches_the_consumer():
    def fail(block, source, record, draw):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        next(make(build_row=fail).iterate(0))
