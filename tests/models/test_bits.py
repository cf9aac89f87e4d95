"""Bits made by the hash: as even and as unrelated as masks need, and the same forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.models.bits import is_cheap, mix, with_bits
from ofa_jax.models.layers import dropout, fold_key, row_keys, split_key

N = 2**20


def hashed(seed: int) -> jax.Array:
    return with_bits(jax.random.key(seed), "hash")


def test_mixing_is_a_bijection_of_known_values():
    # Of the published program, computed by hand with Python's integers.
    def by_hand(x: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ x >> shift) * factor % 2**32
        return x ^ x >> 16

    numbers = np.array([0, 1, 2, 3, 0x12345678, 0xFFFFFFFF], np.uint32)
    assert mix(jnp.asarray(numbers)).tolist() == [by_hand(int(x)) for x in numbers]
    assert len(np.unique(mix(jnp.arange(N, dtype=jnp.uint32)))) == N


@pytest.mark.parametrize("seed", range(4))
def test_every_bit_is_even_and_unrelated_to_its_neighbours(seed: int):
    bits = np.asarray(jax.random.bits(hashed(seed), (N,)))
    spread = 5 / np.sqrt(N)  # five deviations of the mean of N signs
    signs = np.stack([(bits >> place & 1).astype(np.int8) * 2 - 1 for place in range(32)])
    assert np.abs(signs.mean(1)).max() < spread
    for distance in (1, 2, 64, 768, 1024):
        assert np.abs((signs[:, distance:].astype(np.int32) * signs[:, :-distance]).mean(1)).max() < spread
    # Bytes: chi-square with 255 degrees of freedom, five deviations.
    for shift in (0, 8, 16, 24):
        counts = np.bincount(bits >> shift & 255, minlength=256)
        assert abs(((counts - N / 256) ** 2 / (N / 256)).sum() - 255) < 5 * np.sqrt(2 * 255)


def test_rows_layers_and_neighbouring_keys_are_unrelated():
    rows = row_keys(hashed(0), 64)
    keys = [*split_key(rows, 3), fold_key(rows, 11), fold_key(rows, 12), row_keys(hashed(1), 64)]
    masks = np.stack([np.asarray(jax.vmap(lambda one: jax.random.bernoulli(one, 0.5, (2**12,)))(key)) for key in keys])
    flat = masks.reshape(-1, 2**12).astype(np.float64) * 2 - 1
    related = flat @ flat.T / 2**12
    np.fill_diagonal(related, 0.0)
    assert np.abs(related).max() < 6 / np.sqrt(2**12)  # of 73,536 pairs
    # Keys that differ in one bit, as no split makes them.
    one, other = (with_bits(jax.random.wrap_key_data(jnp.uint32([5, word])), "hash") for word in (8, 9))
    assert np.mean(np.asarray(jax.random.bits(one, (N,)) == jax.random.bits(other, (N,)))) < 1e-5


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_dropout_keeps_the_rate_and_its_gradient_has_the_same_mask(rate: float):
    keys = row_keys(hashed(7), 16)
    x = 1.0 + jax.random.uniform(jax.random.key(1), (16, 256, 64))
    out, back = jax.vjp(lambda x: dropout(x, rate, keys), x)
    kept = np.asarray(out) != 0
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_array_equal(np.asarray(out), np.where(kept, x / (1 - rate), 0.0))
    [grad] = back(jnp.ones_like(x))
    np.testing.assert_array_equal(np.asarray(grad) != 0, kept)
    np.testing.assert_array_equal(jax.jit(lambda x: dropout(x, rate, keys))(x), out)


def test_no_mask_is_kept_for_the_backward_pass():
    keys = row_keys(hashed(7), 16)
    x = jnp.ones((16, 1024, 64))

    def kept(keys: jax.Array) -> int:
        residuals = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(lambda x: dropout(x, 0.1, keys), x)[1], x))
        return sum(leaf.size for leaf in residuals)

    assert kept(keys) < 100 and kept(row_keys(jax.random.key(7), 16)) >= x.size


def test_other_widths_and_names():
    key = hashed(3)
    assert is_cheap(key) and not is_cheap(jax.random.key(3))
    wide, low = np.asarray(jax.random.bits(key, (N,), np.uint32)), np.asarray(jax.random.bits(key, (N,), np.uint8))
    assert np.array_equal(low, wide >> 24)
    with jax.enable_x64(True):
        pair = np.asarray(jax.random.bits(key, (1000,), np.uint64))
    assert np.array_equal(pair >> 32, wide[:1000]) and len(np.unique(pair & 0xFFFFFFFF)) > 990
    with pytest.raises(ValueError, match="model.dropout_bits: found 'philox', expected one of threefry, hash"):
        with_bits(jax.random.key(0), "philox")
