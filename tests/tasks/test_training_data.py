"""The pipeline of a config: image codes must be those of the model's grid, or every position of their targets would mean another place."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.ofa_large import get_config
from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import RunConfig, SourceConfig
from ofa_jax.prepare import fixtures
from ofa_jax.prepare.codes import CodeOptions, write_codes
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
        (dataclasses.replace(F8, image_px=64, stride=4), "8 x 8 codes of the central area at --image_px=64"),
        (dataclasses.replace(F8, area="whole"), "32 x 32 codes of the whole area at --image_px=256"),
        (dataclasses.replace(F8, num_codes=8_193), "a codebook of 8193 codes"),
    ],
)
def test_codes_of_another_grid_are_told_before_a_row_is_made(prepared: Path, tmp_path: Path, options: CodeOptions, found: str):
    pipeline, _ = training_pipeline(config_of_codes(prepared, tmp_path, options))
    with pytest.raises(DataError, match=f"dataset easy_vqa: .*found {found}, expected "):
        pipeline.batch(0)
