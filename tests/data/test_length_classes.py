"""Length classes: chosen so that short records have short shapes, and nine in ten positions of OFA's mixture are of use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import BlockConfig, RunConfig, SourceConfig
from ofa_jax.data.length_classes import Usefulness, block_classes, block_usefulness, choose_classes
from ofa_jax.data.typical_lengths import draw_lengths

ROOT = Path(__file__).parents[2]
RECORDS = 5_000  # of each data set


def by_stream(config: RunConfig, *, with_classes: bool) -> dict[str, Usefulness]:
    """Returns what of a batch is of use, on the lengths that the public data sets are known for."""
    draw = np.random.default_rng(0)
    streams: dict[str, Usefulness] = {}
    for block in config.data.blocks:
        lengths = [draw_lengths(line.dataset, line.row, RECORDS, draw) for line in block.sources]
        block = block if with_classes else dataclasses.replace(block, classes=())
        patches = block.num_patches or (block.image_px // config.model.resnet.stride) ** 2
        found = block_usefulness(block, lengths, num_patches=patches)
        streams[block.stream] = streams[block.stream] + found if block.stream in streams else found
    return streams


@pytest.mark.parametrize("name", ["ofa_tiny", "ofa_base", "ofa_large", "ofa_large_stage2", "ofa_huge", "ofa_huge_stage2"])
def test_nine_in_ten_positions_of_every_stream_are_of_use(name: str):
    config = read_config(str(ROOT / "configs" / f"{name}.py"))
    assert isinstance(config, RunConfig)
    found = by_stream(config, with_classes=True)
    assert set(found) == {"pairs", "images", "text"}
    assert min(stream.share for stream in found.values()) >= 0.90, {stream: round(use.share, 3) for stream, use in found.items()}
    whole = by_stream(config, with_classes=False)
    assert found["pairs"].text_share > 3 * whole["pairs"].text_share


def test_chosen_classes_hold_their_share_and_waste_less_than_one_shape():
    draw = np.random.default_rng(0)
    sources = (SourceConfig("cc12m", "caption", 3.0), SourceConfig("gqa", "question"), SourceConfig("vg_regions", "grounding"))
    block = BlockConfig("pairs", "pairs", 64, 128, 64, sources, image_px=384)
    lengths = [draw_lengths(line.dataset, line.row, RECORDS, draw) for line in sources]
    classes = block_classes(block, lengths, rows=(32, 16, 16), multiple=4)
    assert [part.rows for part in classes] == [32, 16, 16]
    assert all(value % 4 == 0 for part in classes for value in (*part.source_lens, *part.target_lens))
    split = block_usefulness(dataclasses.replace(block, classes=classes), lengths, num_patches=0)  # raises where a class lacks records
    assert split.text_share > 2 * block_usefulness(block, lengths, num_patches=0).text_share


def test_one_class_is_as_long_as_its_longest_record():
    lengths = np.array([[[5, 3]], [[9, 2]], [[4, 8]]], np.uint16)
    (only,) = choose_classes(lengths, np.ones(3), rows=(8,), longest=(64, 64))
    assert (only.source_lens, only.target_lens) == ((9,), (8,))
    (cut,) = choose_classes(lengths, np.ones(3), rows=(8,), longest=(8, 6), multiple=4)
    assert (cut.source_lens, cut.target_lens) == ((8,), (6,))


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(ConfigError, match="found 0 records"):
        choose_classes(np.zeros((0, 2, 2), np.uint16), np.zeros(0), rows=(8,), longest=(8, 8))
    with pytest.raises(ConfigError, match="expected one of cc12m"):
        draw_lengths("laion", "caption", 3, np.random.default_rng(0))
