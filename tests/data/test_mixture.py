"""Order is arithmetic: exact mixture counts, exact epoch coverage, another shuffle for every source and epoch, exact host slices."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import BlockConfig, SourceConfig
from ofa_jax.data.mixture import Draw, ExactSelection, block_order, host_rows, integer_proportions, rows_before, source_counts


def block(*weights: float, rows: int = 14) -> BlockConfig:
    sources = tuple(SourceConfig(f"set{number}", "caption", weight) for number, weight in enumerate(weights))
    return BlockConfig("pairs", "pairs", rows=rows, source_len=4, target_len=4, sources=sources, image_px=16)


def test_weights_become_the_smallest_exact_integers():
    assert integer_proportions([0.3, 0.7]) == (3, 7)
    assert integer_proportions([11.4, 2.2, 2.4]) == (57, 11, 12)
    assert integer_proportions([1.0, 1.0]) == (1, 1)
    assert integer_proportions([5.0]) == (1,)
    assert integer_proportions([1e-3, 2.0]) == (1, 2000)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_positive_number_is_refused(weight: float):
    with pytest.raises(DataError, match="expected a positive number"):
        integer_proportions([1.0, weight])


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
    order = block_order(block(1.0), lengths=[length], seed=3, block_index=0)
    epochs = [[order[epoch * length + i].record for i in range(length)] for epoch in range(4)]
    for records in epochs:
        assert sorted(records) == list(range(length))
    if length >= 17:
        assert len({tuple(records) for records in epochs}) == 4, "every epoch is shuffled anew"


def test_epochs_of_all_sources_are_covered_in_a_mixture():
    lengths, proportions = [6, 10, 4], (3, 5, 2)
    order = block_order(block(0.3, 0.5, 0.2), lengths=lengths, seed=3, block_index=0)
    for epoch in range(3):
        draws = [order[epoch * 20 + e] for e in range(20)]
        assert sorted(draws) == [Draw(source, record) for source in range(3) for record in range(lengths[source])], proportions


def test_seed_block_and_source_each_have_a_shuffle_of_their_own():
    def records(seed: int, block_index: int, source: int) -> tuple[int, ...]:
        order = block_order(block(1.0, 1.0), lengths=[50, 50], seed=seed, block_index=block_index)
        return tuple(draw.record for draw in (order[e] for e in range(100)) if draw.source == source)

    orders = [records(seed, index, source) for seed in (1, 2) for index in (0, 1) for source in (0, 1)]
    assert len(set(orders)) == len(orders)
    assert records(1, 0, 0) == orders[0]


def test_an_order_reaches_elements_far_away():
    order = block_order(block(0.3, 0.7), lengths=[1000, 7], seed=0, block_index=0)
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
        block_order(block(1.0, 1.0), lengths=[5, 0], seed=0, block_index=0)
