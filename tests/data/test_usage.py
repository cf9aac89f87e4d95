"""How often sources are drawn: the closed form against elements counted one by one."""

from __future__ import annotations

import collections
import dataclasses

import pytest

from ofa_jax.config.schema import BlockConfig, DataConfig, SourceConfig
from ofa_jax.data.mixture import Members
from ofa_jax.data.pipeline import Pipeline
from ofa_jax.data.usage import Usage, source_name
from tests.data.memory_records import LENGTHS, build_row, data_config, open_damaged


def pipeline_and_usage(data: DataConfig, **options: object) -> tuple[Pipeline, Usage]:
    pipeline = Pipeline(data, 1, build_row, open_damaged, **options)
    return pipeline, Usage(data, pipeline.members())


def test_closed_form_equals_counted_draws():
    pipeline, usage = pipeline_and_usage(data_config())
    rows: collections.Counter[str] = collections.Counter()
    records: dict[str, list[int]] = collections.defaultdict(list)
    for step in range(6):
        batch, origins = pipeline.trace(step)
        for index, found in enumerate(origins.values()):
            for origin in found:
                name = source_name(origin.source)
                assert usage.epoch(index, origin.element) == rows[name] // LENGTHS[origin.source.dataset]
                rows[name] += 1
                if not origin.rejects:
                    records[name].append(origin.record)
        by_dataset = collections.Counter(origin.source.dataset for found in origins.values() for origin in found)
        assert usage.batch_rows(batch) == by_dataset
        assert usage.rows(step + 1) == rows
        assert usage.epochs(step + 1) == {name: count / LENGTHS[name.split("/")[0]] for name, count in rows.items()}
    assert set(usage.records) == {"shapes/caption", "letters/caption", "prose/text_infilling"}
    # An epoch later every record that can be used was seen: the numbers speak of real draws.
    assert usage.epochs(6)["shapes/caption"] > 2 and len(set(records["shapes/caption"])) == LENGTHS["shapes"] - 2


def test_a_trace_is_the_batch_and_names_every_record_and_reject():
    pipeline, _ = pipeline_and_usage(data_config())
    rejected = 0
    for step in range(3):
        batch, origins = pipeline.trace(step)
        assert tuple(reject for found in origins.values() for origin in found for reject in origin.rejects) == batch.rejects
        for name, block in batch.blocks.items():
            assert [origin.element for origin in origins[name]] == block.elements.tolist()
            per_row = len(block.task_ids) // len(block.elements)
            # The small row builder writes the record's number into the first sequence of its row.
            assert [origin.record for origin in origins[name]] == (block.source_ids[::per_row, 1] - 50).tolist()
            assert [origin.record_id for origin in origins[name]] == [f"{o.source.dataset}-{o.record}" for o in origins[name]]
        rejected += len(batch.rejects)
    assert rejected


def test_hosts_count_their_own_rows():
    whole, usage = pipeline_and_usage(data_config())
    parts = [pipeline_and_usage(data_config(), host=host, num_hosts=7) for host in range(7)]
    total = sum((own.batch_rows(part.batch(4)) for part, own in parts), collections.Counter())
    assert total == usage.batch_rows(whole.batch(4))


def test_a_source_of_two_blocks_is_counted_once():
    lines = (SourceConfig("shapes", "caption"), SourceConfig("shapes", "caption", split="validation"))
    block = BlockConfig("short", "pairs", rows=10, source_len=4, target_len=4, sources=lines, image_px=16)
    data = DataConfig(blocks=(block, dataclasses.replace(block, name="long", sources=lines[:1])))
    usage = Usage(data, [[Members(20), Members(5)], [Members(20)]])
    assert usage.rows(4) == {"shapes/caption": 60, "shapes/caption/validation": 20}
    assert usage.epochs(4) == {"shapes/caption": 3.0, "shapes/caption/validation": 4.0}


@pytest.mark.parametrize(
    ("max_epochs", "names"), [(0, []), (3.3, ["prose/text_infilling"]), (3, ["letters/caption", "prose/text_infilling"])]
)
def test_the_forecast_names_what_repeats_more_than_the_limit(max_epochs: float, names: list[str]):
    usage = Usage(data_config(max_epochs=max_epochs), [[Members(1000), Members(11)], [Members(40)]])
    said = usage.forecast(10)
    assert [line.split()[0] for line in said] == names == list(usage.repeated(10))
    if max_epochs == 3:
        assert said[0] == "letters/caption will be seen 3.2 times by step 10, more than data.max_epochs 3: it has 11 records"
