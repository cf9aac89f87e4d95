"""Order is arithmetic: exact mixture counts, exact epoch coverage, another shuffle for every source and epoch, exact host slices."""

from __future__ import annotations

import collections
import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import BlockConfig, DataConfig, LengthClass, RowBlock, SourceConfig
from ofa_jax.data.mixture import (
    Draw,
    ExactSelection,
    Members,
    block_order,
    block_selection,
    class_members,
    host_rows,
    integer_proportions,
    rows_before,
    source_counts,
)


def block(*weights: float, rows: int = 14) -> BlockConfig:
    sources = tuple(SourceConfig(f"set{number}", "caption", weight) for number, weight in enumerate(weights))
    return BlockConfig("pairs", "pairs", rows=rows, source_len=4, target_len=4, sources=sources, image_px=16)


def test_weights_become_the_smallest_exact_integers():
    assert integer_proportions([0.3, 0.7]) == (3, 7)
    assert integer_proportions([11.4, 2.2, 2.4]) == (57, 11, 12)
    assert integer_proportions([1.0, 1.0]) == (1, 1)
    assert integer_proportions([5.0]) == (1,)
    assert integer_proportions([1e-3, 2.0]) == (1, 2000)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_negative_or_no_number_is_refused(weight: float):
    with pytest.raises(DataError, match="expected a number of 0 or more"):
        integer_proportions([1.0, weight])


def test_weights_that_are_all_0_are_refused():
    with pytest.raises(DataError, match="expected one above 0"):
        integer_proportions([0.0, 0.0])
    assert integer_proportions([2.0, 0.0, 1.0]) == (2, 0, 1)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 10_000), st.integers(0, 10**12))
def test_every_period_has_exact_counts_and_every_prefix_is_close(proportions: list[int], prefix: int, periods: int):
    share = sum(proportions)
    assert source_counts(periods * share, proportions) == tuple(periods * weight for weight in proportions)
    counts = source_counts(prefix, proportions)
    assert sum(counts) == prefix
    for count, weight in zip(counts, proportions, strict=True):
        assert abs(count - prefix * weight / share) < len(proportions)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_each_source_is_walked_without_a_gap(proportions: list[int]):
    selection = ExactSelection(proportions)
    seen: collections.Counter[int] = collections.Counter()
    for element in range(60):
        source, position = selection[element]
        assert position == seen[source]
        seen[source] += 1


@pytest.mark.parametrize("length", [1, 2, 3, 17, 100])
def test_each_epoch_covers_each_record_once(length: int):
    order = block_order(block(1.0), members=[Members(length)], seed=3, block_index=0)
    epochs = [[order[epoch * length + i].record for i in range(length)] for epoch in range(4)]
    for records in epochs:
        assert sorted(records) == list(range(length))
    if length >= 17:
        assert len({tuple(records) for records in epochs}) == 4, "every epoch is shuffled anew"


def test_epochs_of_all_sources_are_covered_in_a_mixture():
    lengths, proportions = [6, 10, 4], (3, 5, 2)
    order = block_order(block(0.3, 0.5, 0.2), members=[Members(n) for n in lengths], seed=3, block_index=0)
    for epoch in range(3):
        draws = [order[epoch * 20 + e] for e in range(20)]
        assert sorted(draws) == [Draw(source, record) for source in range(3) for record in range(lengths[source])], proportions


def test_seed_block_and_source_each_have_a_shuffle_of_their_own():
    def records(seed: int, block_index: int, source: int) -> tuple[int, ...]:
        order = block_order(block(1.0, 1.0), members=[Members(n) for n in (50, 50)], seed=seed, block_index=block_index)
        return tuple(draw.record for draw in (order[e] for e in range(100)) if draw.source == source)

    orders = [records(seed, index, source) for seed in (1, 2) for index in (0, 1) for source in (0, 1)]
    assert len(set(orders)) == len(orders)
    assert records(1, 0, 0) == orders[0]


def test_an_order_reaches_elements_far_away():
    order = block_order(block(0.3, 0.7), members=[Members(n) for n in (1000, 7)], seed=0, block_index=0)
    draw = order[300_000 * 4096]
    assert 0 <= draw.record < (1000, 7)[draw.source]


def test_rows_before_and_host_rows_tile_the_elements():
    pairs = block(1.0)
    assert rows_before(pairs, 0) == 0
    assert rows_before(pairs, 300_000) == 14 * 300_000
    for num_hosts in (1, 2, 7, 14):
        rows = [row for host in range(num_hosts) for row in host_rows(pairs, host=host, num_hosts=num_hosts)]
        assert rows == list(range(14))
    with pytest.raises(DataError, match="block pairs: field rows: found 14, expected a multiple of the 4 hosts"):
        host_rows(pairs, host=0, num_hosts=4)


def test_a_source_without_records_is_refused():
    with pytest.raises(DataError, match="dataset set1 split train: found 0 records"):
        block_order(block(1.0, 1.0), members=[Members(n) for n in (5, 0)], seed=0, block_index=0)


STAGED = BlockConfig(
    name="pairs",
    stream="pairs",
    rows=8,
    source_len=16,
    target_len=8,
    sources=(
        SourceConfig("a", "caption", 3.0, later_weights=(1.0, 0.0)),
        SourceConfig("b", "caption", 1.0),
        SourceConfig("c", "caption", 0.5, later_weights=(2.0, 4.0)),
    ),
)


def test_every_stage_of_a_mixture_has_exactly_its_own_counts():
    stage_steps = (9, 20)
    members = [Members(50), Members(7), Members(30)]
    order = block_order(STAGED, members=members, seed=3, block_index=0, stage_steps=stage_steps)
    of_stage = {(0, 9): (3.0, 1.0, 0.5), (9, 20): (1.0, 1.0, 2.0), (20, 60): (0.0, 1.0, 4.0)}
    for (first, end), weights in of_stage.items():
        drawn = Counter(order[element].source for element in range(8 * first, 8 * end))
        for source, weight in enumerate(weights):
            assert abs(drawn[source] - 8 * (end - first) * weight / sum(weights)) < 1, (first, source)
    assert Counter(order[element].source for element in range(8 * 20, 8 * 60))[0] == 0
    selection = block_selection(STAGED, members=members, stage_steps=stage_steps)
    counted = Counter(order[element].source for element in range(400))
    assert selection.counts(400) == tuple(counted[source] for source in range(3))


def test_a_stage_changes_nothing_before_it():
    members = [Members(50), Members(7), Members(30)]
    plain = block_order(STAGED, members=members, seed=3, block_index=0)
    staged = block_order(STAGED, members=members, seed=3, block_index=0, stage_steps=(9, 20))
    assert [plain[element] for element in range(72)] == [staged[element] for element in range(72)]


CLASSES = (LengthClass(4, (8, 12), (6, 2)), LengthClass(3, (16,), (8, 2)), LengthClass(1, (32,), (32,)))
CLASSED = dataclasses.replace(STAGED, source_len=32, target_len=32, sources=STAGED.sources[:2], classes=CLASSES)


def holds(part: RowBlock, lengths: np.ndarray) -> bool:
    return all(lengths[task, 0] <= part.lens_of(task)[0] and lengths[task, 1] <= part.lens_of(task)[1] for task in (0, 1))


def test_every_record_is_in_one_length_class_that_holds_it():
    """Six in ten records fit the first class, three more the second: the second and third class have room for some of the first's."""
    draw = np.random.default_rng(0)
    sizes = {0: (3, 9), 1: (9, 13), 2: (17, 30)}
    lengths = []
    for count in (4000, 1001):
        of = draw.choice(3, count, p=(0.6, 0.3, 0.1))
        table = np.array([[draw.integers(*sizes[place]), 2] for place in of]).reshape(count, 1, 2).repeat(2, axis=1)
        lengths.append(table.astype(np.uint16))
    parts = DataConfig(blocks=(CLASSED,)).row_blocks
    assert [part.name for part in parts] == ["pairs_0", "pairs_1", "pairs_2"]
    assert [(part.rows, part.source_len, part.target_len) for part in parts] == [(4, 12, 6), (3, 16, 8), (1, 32, 32)]
    members = class_members(parts, lengths)
    for source, table in enumerate(lengths):
        chosen = [part[source].chosen for part in members]
        assert sorted(np.concatenate(chosen).tolist()) == list(range(len(table)))
        for part, records in zip(parts[:-1], chosen, strict=False):
            assert all(holds(part, table[record]) for record in records)
    shares = [sum(w * part[s].num_records / part[s].total for s, w in enumerate((0.75, 0.25))) for part in members]
    assert shares == pytest.approx([4 / 8, 3 / 8, 1 / 8], abs=2e-3)  # of the rows: every record comes as often as every other


def test_a_class_with_more_rows_than_short_records_is_refused():
    lengths = [np.full((100, 2, 2), 31, np.uint16)] * 2
    with pytest.raises(DataError, match=r"block pairs_0: found 0.000 of the records .* expected at least 0.500.*prepare.py classes"):
        class_members(DataConfig(blocks=(CLASSED,)).row_blocks, lengths)


def test_the_classes_of_a_block_together_have_the_weights_of_its_lines():
    """Weight 3 : 1, but nearly all records of b are long: it has more of the long class, less of the short one, and a quarter in all."""
    short = [Members(1000, np.arange(900, dtype=np.int32)), Members(500, np.arange(50, dtype=np.int32))]
    long = [Members(1000, np.arange(900, 1000, dtype=np.int32)), Members(500, np.arange(50, 500, dtype=np.int32))]
    counts = [block_selection(CLASSED, members=members).counts(10**6) for members in (short, long)]
    share_of_short = (3 * 0.9 + 0.1) / 4  # of all rows, where the classes' rows are in the ratio of the records
    total = [share_of_short * a + (1 - share_of_short) * b for a, b in zip(*counts, strict=True)]
    assert total[0] / sum(total) == pytest.approx(0.75, abs=1e-5)
    order = block_order(CLASSED, members=long, seed=0, block_index=1)
    assert all(order[element].record >= (900 if order[element].source == 0 else 50) for element in range(300))


def test_a_source_without_records_of_a_class_is_not_drawn_there():
    members = [Members(100), Members(100, np.zeros(0, np.int32))]
    order = block_order(CLASSED, members=members, seed=0, block_index=0)
    assert {order[element].source for element in range(100)} == {0}
    with pytest.raises(DataError, match="expected one above 0 of a dataset with records"):
        block_order(CLASSED, members=[members[1]] * 2, seed=0, block_index=0)
