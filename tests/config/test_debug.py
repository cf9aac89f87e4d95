"""The `:debug` variant: small, on generated data, and still the run it shrinks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ofa_jax.config import debug
from ofa_jax.config.check import check
from ofa_jax.config.debug import join_classes
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import LengthClass

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["ofa_large", "ofa_huge_stage2", "quickstart"])
def test_debug_keeps_streams_and_row_kinds(name):
    full, small = (read_config(f"{ROOT}/configs/{name}.py{arg}") for arg in ("", ":debug"))
    assert debug.uses_fixtures(small)
    assert not debug.uses_fixtures(full)
    assert small.steps == debug.DEBUG_STEPS
    assert small.name == f"{name}_debug"
    for a, b in zip(full.data.blocks, small.data.blocks, strict=True):
        assert (a.name, a.stream, a.augment, a.pairs_per_image) == (b.name, b.stream, b.augment, b.pairs_per_image)
        assert {s.row for s in a.sources} == {s.row for s in b.sources}
        assert (a.num_patches > 0) == (b.num_patches > 0)
    assert small.model.resnet.stride == full.model.resnet.stride
    assert small.model.dropout == full.model.dropout
    assert small.model.width < 128
    assert small.optimizer == full.optimizer


def test_the_stacks_keep_their_proportion():
    model = read_config(f"{ROOT}/configs/ofa_huge.py:debug").model
    assert (model.encoder_layers, model.decoder_layers) == (2, 1)


def test_a_length_can_be_given_with_and_without_debug():
    assert read_config(f"{ROOT}/configs/ofa_tiny.py:steps=9").steps == 9
    assert read_config(f"{ROOT}/configs/ofa_tiny.py:debug,steps=10").steps == 10


def test_length_classes_are_joined_until_devices_can_share_them():
    classes = (LengthClass(384, (8, 20), (10,)), LengthClass(64, (12,), (4, 20)), LengthClass(64, (16,), (30,)))
    assert join_classes(classes, 64) == classes
    assert join_classes(classes, 128) == (LengthClass(384, (8, 20), (10,)), LengthClass(128, (16,), (30, 30)))
    assert join_classes(classes, 256) == (LengthClass(512, (16, 20), (30, 30)),)
    assert join_classes((), 256) == ()


@pytest.mark.parametrize("name", ["ofa_tiny", "ofa_large", "ofa_huge_stage2", "quickstart"])
def test_own_data_keeps_every_shape_that_prepared_data_has(name):
    full, small = (read_config(f"{ROOT}/configs/{name}.py{arg}") for arg in ("", ":debug,own_data"))
    check(small, num_devices=8)
    assert not debug.uses_fixtures(small) and small.vocab == full.vocab and small.data.dir == full.data.dir
    assert small.model.code_grid == full.model.code_grid and small.model.code_image_px == full.model.code_image_px
    assert small.model.width == 64 and small.model.encoder_layers <= 2
    for a, b in zip(full.data.blocks, small.data.blocks, strict=True):
        assert dataclasses.replace(a, rows=debug.DEBUG_ROWS, classes=()) == b
    assert small.loss.constraint_range == full.loss.constraint_range
    assert [dataclasses.replace(row, limit=8) for row in full.eval.sets] == list(small.eval.sets)
    assert (small.eval.image_px, small.eval.target_len) == (full.eval.image_px, full.eval.target_len)


def test_own_data_keeps_a_constraint_of_its_own_ids():
    full = read_config(f"{ROOT}/configs/ofa_large.py")
    full = dataclasses.replace(full, loss=dataclasses.replace(full.loss, constraint_range=(50_265, 50_300)))
    assert debug.debug(full, own_data=True).loss.constraint_range == (50_265, 50_300)
    assert debug.debug(full).loss.constraint_range == (debug.FIXTURE_VOCAB.first_code_id, debug.FIXTURE_VOCAB.first_bin_id)
