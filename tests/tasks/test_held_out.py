"""Held-out batches of a config: other records than training's, the same in every run, pictures as they are, any number of hosts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs.ofa_large import get_config
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import RunConfig, SourceConfig
from ofa_jax.prepare import fixtures
from ofa_jax.tasks.training_data import held_out_pipeline, training_pipeline


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = fixtures.write(tmp_path_factory.mktemp("fixtures") / "data")
    config = get_config("debug")
    vocab = dataclasses.replace(config.vocab, path=str(folder / "tokenizer.model"))
    return dataclasses.replace(config, vocab=vocab, data=dataclasses.replace(config.data, dir=str(folder)))


def ids_of(pipeline, data_step: int = 0) -> set[str]:
    return {origin.record_id for origins in pipeline.trace(data_step)[1].values() for origin in origins}


def test_records_are_of_the_validation_split_and_pictures_are_not_augmented(config: RunConfig):
    held_out, pipeline, left_out = held_out_pipeline(config)
    assert left_out == []
    assert all(source.split == "validation" for block in held_out.data.blocks for source in block.sources)
    assert all((block.augment, block.num_patches, block.classes) == ("resize", 0, ()) for block in held_out.data.blocks)
    training, _ = training_pipeline(config)
    assert not ids_of(pipeline) & (ids_of(training) | ids_of(training, 1))


def test_batches_are_the_same_in_every_run_and_on_any_number_of_hosts(config: RunConfig):
    batch = held_out_pipeline(config)[1].batch(0)
    other = held_out_pipeline(dataclasses.replace(config, seed=9, name="other", steps=99))[1].batch(0)
    halves = [held_out_pipeline(config, host=host, num_hosts=2)[1].batch(0) for host in (0, 1)]
    for name, block in batch.blocks.items():
        for field in ("source_ids", "target_ids", "images"):
            values = getattr(block, field)
            if values is not None:
                np.testing.assert_array_equal(values, getattr(other.blocks[name], field))
                np.testing.assert_array_equal(values, np.concatenate([getattr(half.blocks[name], field) for half in halves]))


def test_micro_batches_make_it_smaller_and_what_has_no_split_is_left_out(config: RunConfig):
    def with_split(split: str) -> RunConfig:
        blocks = [
            dataclasses.replace(block, sources=tuple(dataclasses.replace(source, split=split) for source in block.sources))
            if block.stream == "text"
            else block
            for block in config.data.blocks
        ]
        optimizer = dataclasses.replace(config.optimizer, accumulate=2)
        return dataclasses.replace(config, optimizer=optimizer, data=dataclasses.replace(config.data, blocks=tuple(blocks)))

    held_out, _, left_out = held_out_pipeline(with_split("validation"))  # trained on: not held out
    assert left_out == ["prose (text_infilling)"]
    assert "text" not in {block.stream for block in held_out.data.blocks}
    assert {block.rows for block in held_out.data.blocks} == {4}


def test_nothing_held_out_is_one_sentence(config: RunConfig):
    sources = (SourceConfig("prose", "text_infilling", split="validation"),)
    block = next(block for block in config.data.blocks if block.stream == "text")
    data = dataclasses.replace(config.data, blocks=(dataclasses.replace(block, sources=sources),))
    with pytest.raises(ConfigError, match="eval.loss_every_steps: found 0, expected 0, as no dataset of the mixture in"):
        held_out_pipeline(dataclasses.replace(config, data=data))
