"""The pipeline of a config: image codes must be those of the model's grid, or every position of their targets would mean another place."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.ofa_large import get_config
from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import BlockConfig, RunConfig, SourceConfig
from ofa_jax.prepare import fixtures
from ofa_jax.prepare.builders import base, scenes
from ofa_jax.prepare.codes import CodeOptions, check_one_vqgan, write_codes
from ofa_jax.tasks.training_data import training_pipeline

F8 = CodeOptions("some digest", num_codes=8_192, stride=8, image_px=256)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write(tmp_path_factory.mktemp("fixtures") / "data")


def config_of_codes(prepared: Path, folder: Path, options: CodeOptions) -> RunConfig:
    """The large config made small, its infilling block alone, on pictures whose codes were made with `options`."""
    shutil.copytree(prepared / "easy_vqa", folder / "easy_vqa")

    def encode(images: np.ndarray) -> np.ndarray:
        shape = (len(images), options.grid, options.grid)
        return np.random.default_rng(len(images)).integers(0, options.num_codes, shape)

    write_codes(folder, "easy_vqa", encode, options, batch=64, progress=lambda _: None)
    config = get_config("debug,own_data")
    block = next(block for block in config.data.blocks if block.name == "infilling")
    block = dataclasses.replace(block, sources=(SourceConfig("easy_vqa", "image_infilling"),))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(folder), blocks=(block,)))


def test_a_small_model_reads_the_codes_of_the_real_settings(prepared: Path, tmp_path: Path):
    config = config_of_codes(prepared, tmp_path, F8)
    made: list[None] = []
    block = training_pipeline(config, after_row=lambda: made.append(None))[0].batch(0).blocks["infilling"]
    assert len(made) == 8
    assert block.images.shape == (8, 256, 256, 3)
    targets = block.target_ids[:, :256] - config.vocab.first_code_id
    assert targets.min() >= 0 and targets.max() < 8_192 and len(np.unique(targets)) > 1_000
    assert (block.target_ids[:, 256] == 2).all() and (block.target_ids[:, 257:] == 1).all()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (dataclasses.replace(F8, image_px=64, stride=4), "8 x 8 codes at --image_px=64"),
        (dataclasses.replace(F8, num_codes=8_193), "a codebook of 8193 codes"),
    ],
)
def test_codes_of_another_grid_are_told_before_a_row_is_made(prepared: Path, tmp_path: Path, options: CodeOptions, found: str):
    pipeline, _ = training_pipeline(config_of_codes(prepared, tmp_path, options))
    with pytest.raises(DataError, match=f"dataset easy_vqa: .*found {found}, expected "):
        pipeline.batch(0)


def test_a_dataset_has_codes_of_whole_pictures_beside_those_of_their_centres(prepared: Path, tmp_path: Path):
    config = config_of_codes(prepared, tmp_path, F8)
    few = scenes.ScenesOptions(train=16, validation=1, seen_composition=1, unseen_composition=1, unseen_artwork=1)
    base.build(scenes.Scenes, data_dir=tmp_path, options=few, max_records=16, progress=lambda _: None)
    whole = CodeOptions("some digest", num_codes=128, stride=8, image_px=128, area="whole")
    for options in (dataclasses.replace(whole, image_px=256, area="central"), whole):
        value = 7 if options.area == "whole" else 5
        grids = lambda images, value=value: np.full((len(images), 16, 16), value)  # noqa: E731
        write_codes(tmp_path, "scenes", grids, options, batch=64, progress=lambda _: None)
    infilling = dataclasses.replace(config.data.blocks[0], sources=(SourceConfig("scenes", "image_infilling"),))
    painting = BlockConfig("paintings", "text", 8, 80, 257, (SourceConfig("scenes", "painting"),))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, blocks=(infilling, painting)))
    blocks = training_pipeline(config)[0].batch(0).blocks
    for name, code in (("infilling", 5), ("paintings", 7)):
        assert (blocks[name].target_ids[:, :256] == config.vocab.first_code_id + code).all()
    assert blocks["paintings"].images is None and blocks["paintings"].code_mask.all()
    with pytest.raises(DataError, match="has codes of the VQGAN some digest, expected those of another"):
        check_one_vqgan(tmp_path, "scenes", "another", "whole")
