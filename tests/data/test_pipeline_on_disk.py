"""The pipeline on real shards with the real tasks: hosts, workers and a resume give the rows of the global batch; damage is quarantined."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from configs.quickstart import get_config
from ofa_jax.config.schema import BlockConfig, RunConfig, SourceConfig, VocabConfig
from ofa_jax.data.pipeline import Pipeline
from ofa_jax.data.records import Record, open_records
from ofa_jax.data.transforms.image import transform
from ofa_jax.prepare import fixtures
from ofa_jax.tasks.negatives import load_negatives
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.vocab.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The quickstart's debug run on fixtures of this test, with every augmentation, six rows a block."""
    folder = fixtures.write(tmp_path_factory.mktemp("fixtures"))
    config = get_config("debug")
    augments = {"questions": "random_resize_crop", "regions": "random_resize_crop", "detection": "scale_jitter"}
    blocks = tuple(dataclasses.replace(block, rows=6, augment=augments.get(block.name, "resize")) for block in config.data.blocks)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(folder), blocks=blocks),
        vocab=dataclasses.replace(config.vocab, path=str(folder / "tokenizer.model")),
    )


class OpenFolder:
    """Opens the records of a folder; `damaged`: a part of them with half a picture."""

    def __init__(self, folder: str, damaged: bool = False):
        self.folder, self.damaged = folder, damaged

    def __call__(self, source: SourceConfig) -> object:
        records = open_records(self.folder, source.dataset, source.split)
        return HalfPictures(records) if self.damaged else records


class HalfPictures:
    """Every fourth record has lost the second half of its picture file."""

    def __init__(self, records: object):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        if index % 4 or not hasattr(record, "image"):
            return record
        return dataclasses.replace(record, image=record.image[: len(record.image) // 2])


def make(config: RunConfig, *, damaged: bool = False, num_workers: int = 0, host: int = 0, num_hosts: int = 1) -> Pipeline:
    vocab: VocabConfig = config.vocab
    datasets = {source.dataset for block in config.data.blocks for source in block.sources}
    negatives = {dataset: load_negatives(config.data.dir, dataset) for dataset in datasets}
    build_row = RowBuilder(vocab, load_tokenizer(vocab), negatives, transform)
    data = dataclasses.replace(config.data, num_workers=num_workers)
    return Pipeline(data, config.seed, build_row, OpenFolder(config.data.dir, damaged), host, num_hosts)


def arrays(pipeline: Pipeline, data_step: int) -> dict[str, np.ndarray]:
    batch = pipeline.batch(data_step)
    return {
        f"{name}/{field}": values for name, block in batch.blocks.items() for field, values in block._asdict().items() if values is not None
    }


def test_every_task_comes_in_its_shape(config: RunConfig):
    batch = make(config).batch(0)
    assert not batch.rejects
    seen = set()
    for block, made in zip(config.data.blocks, batch.blocks.values(), strict=True):
        assert_shapes(block, made)
        seen |= set(made.task_ids.tolist())
        for ids in (made.source_ids, made.decoder_ids, made.target_ids):
            assert ids.min() >= 0 and ids.max() < config.vocab.size
    assert seen == set(range(8))
    infilling = batch.blocks["infilling"]
    assert infilling.hole_mask.all() and infilling.code_mask.all() and (infilling.confidence == 2).all()


def assert_shapes(block: BlockConfig, made: object) -> None:
    assert made.source_ids.shape[1:] == (block.source_len,) and made.target_ids.shape[1:] == (block.target_len,)
    assert len(made.task_ids) % block.rows == 0
    if block.stream != "text":
        assert made.images.shape == (block.rows, block.image_px, block.image_px, 3)
        assert made.images.std(axis=(1, 2, 3)).min() > 1, "no picture is blank"


@pytest.mark.parametrize("num_hosts", [2, 3])
def test_hosts_make_the_rows_of_the_global_batch(config: RunConfig, num_hosts: int):
    whole = arrays(make(config), 4)
    parts = [arrays(make(config, host=host, num_hosts=num_hosts), 4) for host in range(num_hosts)]
    for name, values in whole.items():
        np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]), err_msg=name)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resume_with_workers_gives_the_same_batches(config: RunConfig, num_workers: int):
    reference = make(config, damaged=True)
    with make(config, damaged=True, num_workers=num_workers).iterate(3) as batches:
        for data_step in (3, 4):
            batch = next(batches)
            assert batch.rejects and batch.rejects == reference.batch(data_step).rejects
            for name, values in arrays(reference, data_step).items():
                block, field = name.split("/")
                np.testing.assert_array_equal(values, getattr(batch.blocks[block], field), err_msg=name)


def test_half_pictures_are_quarantined_with_their_reason(config: RunConfig):
    rejects = [reject for data_step in range(4) for reject in make(config, damaged=True).batch(data_step).rejects]
    assert rejects
    for reject in rejects:
        assert (reject.reason, reject.field) == ("image", "image") and "decode" in reject.found and "whole" in reject.expected


def test_the_path_of_a_missing_dataset_is_named(config: RunConfig, tmp_path: Path):
    pipeline = make(config)
    pipeline._open_source = OpenFolder(str(tmp_path))
    with pytest.raises(ValueError, match=str(tmp_path)):
        pipeline.batch(0)
