"""Buckets and tables of the relative position bias."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_jax.config.sizes import SIZES
from ofa_jax.models import position_bias as pb

TINY = SIZES["tiny"]
NANO = SIZES["nano"]


def test_token_buckets_of_ofa():
    rel = np.arange(-1023, 1024)
    buckets = pb.token_buckets(rel, bucket_size=256, max_positions=1024) - 255
    assert (buckets == -buckets[::-1]).all() and buckets.min() == -255 and buckets.max() == 255
    known = {0: 0, 1: 1, 128: 128, 129: 129, 130: 129, 131: 130, 200: 156, 512: 213, 1000: 254, 1010: 255, 1023: 255}
    assert {d: int(buckets[d + 1023]) for d in known} == known
    with pytest.raises(ValueError, match="found 1024, expected less than model.max_positions = 1024"):
        pb.token_buckets(np.array([1024]), bucket_size=256, max_positions=1024)


@given(st.integers(1, 9), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_toeplitz(length, tail):
    values = np.random.default_rng(0).normal(size=(2 * length - 1, tail)).astype(np.float32)
    i = np.arange(length)
    np.testing.assert_array_equal(pb.toeplitz(values, length), values[i[:, None] - i[None] + length - 1])


@pytest.mark.parametrize("length", [1, 9, 256])
def test_token_relative_reads_query_minus_key(length):
    table = np.random.default_rng(1).normal(size=(NANO.num_token_buckets, 4)).astype(np.float32)
    i = np.arange(length)
    buckets = pb.token_buckets(i[:, None] - i[None], bucket_size=64, max_positions=256)
    np.testing.assert_array_equal(pb.token_relative(table, length, NANO), table[buckets].transpose(2, 0, 1))


def test_text_beyond_the_buckets_fails():
    with pytest.raises(ValueError, match="text length: found 257, expected at most model.max_positions = 256"):
        pb.token_relative(np.zeros((127, 4)), 257, NANO)


def test_image_buckets_of_ofa():
    ids = np.array([0, 1, 42, 43, 1764])
    buckets = pb.image_buckets(ids[:, None], ids[None], side=42)
    assert buckets[0].tolist() == [6891, 6889, 6889, 6889, 6889]
    assert buckets[:, 0].tolist() == [6891, 6890, 6890, 6890, 6890]
    assert buckets[1, 1] == 41 * 83 + 41 and buckets[2, 1] == 41 * 83 + 82 and buckets[3, 1] == 42 * 83 + 41
    assert buckets[4, 1] == 6888 and buckets[1, 4] == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (8, 8), (16, 16)])
def test_grid_relative_equals_lookup(height, width):
    table = np.random.default_rng(2).normal(size=(NANO.num_image_buckets, 4)).astype(np.float32)
    ids = pb.image_position_ids(height, width, side=16)
    np.testing.assert_array_equal(pb.grid_relative(table, height, width, side=16), pb.ids_relative(table, ids, ids, side=16))


@pytest.mark.parametrize("length", [1, 2, 12, 65, 70])
def test_code_relative_equals_lookup(length):
    table = np.random.default_rng(3).normal(size=(NANO.num_image_buckets, 4)).astype(np.float32)
    ids = pb.code_position_ids(length, NANO)
    np.testing.assert_array_equal(pb.code_relative(table, length, NANO), pb.ids_relative(table, ids, ids, side=16))


def test_code_position_ids():
    ids = pb.code_position_ids(300, TINY)
    assert ids[:3].tolist() == [0, 1, 2] and ids[17] == 43 and ids[256] == 42 * 15 + 16 and (ids[257:] == 1024).all()
    wide = dataclasses.replace(TINY, code_image_px=256)
    assert pb.code_position_ids(1025, wide)[-1] == 42 * 31 + 32


def test_a_grid_beyond_the_table_fails():
    with pytest.raises(ValueError, match="found 17x4 patches, expected at most 16x16"):
        pb.image_position_ids(17, 4, side=16)


def test_absolute_bias_broadcasts_over_the_batch():
    q, k = (np.random.default_rng(i).normal(size=(3, 2, 5, 4)).astype(np.float32) for i in (4, 5))
    dense = np.einsum("bhsk,bhtk->bhst", q, k)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
    close(pb.absolute_bias(q, k, np.float32).absolute, dense)
    close(pb.absolute_bias(q[1:2], k, np.float32).absolute[1], dense[1])
    close(pb.absolute_bias(q, k[2:], np.float32).absolute[2], dense[2])


def test_gradient_of_the_grid_is_the_gradient_of_the_lookup():
    table = np.random.default_rng(6).normal(size=(NANO.num_image_buckets, 2)).astype(np.float32)
    probe = np.random.default_rng(7).normal(size=(2, 12, 12)).astype(np.float32)
    ids = pb.image_position_ids(3, 4, side=16)
    found = jax.grad(lambda t: (pb.grid_relative(t, 3, 4, side=16) * probe).sum())(table)
    expected = jax.grad(lambda t: (pb.ids_relative(t, ids, ids, side=16) * probe).sum())(table)
    np.testing.assert_allclose(found, expected, atol=1e-5)
