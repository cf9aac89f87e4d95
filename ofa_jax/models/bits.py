"""How random bits for dropout's masks are made from a key.

"threefry" is JAX's own generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 20 rounds a pair of numbers, which
CPUs run as loops over whole arrays, each written out. "hash" mixes an element's number with both words of the key, a few instructions an
element that compilers join with what uses the bits, so that a mask need not be written and can be made again in the backward pass:

    bits(i) = mix(mix(i xor k0) + k1),  mix = x ^= x >> 16, x *= 0x7feb352d, x ^= x >> 15, x *= 0x846ca68b, x ^= x >> 16

mix is the bijection of 32 bits that Wellons found by search ("Prospecting for hash functions", nullprogram.com, 2018). Keys themselves,
split and folded, are threefry's in both: only the bits of one mask are the hash's.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np
from jax import lax
from jax.extend import random as prng

BITS = ("threefry", "hash")
_THREEFRY = "threefry2x32"


def mix(x: jax.Array) -> jax.Array:
    """Returns the mixed bits of x, uint32, of its shape: a bijection."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _hash_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """Random bits of `shape` from key data uint32 [2]."""
    number = lax.iota(np.uint32, int(np.prod(shape))).reshape(shape)
    bits = mix(mix(number ^ key[0]) + key[1])
    if bit_width == 64:
        low = mix(mix(number ^ key[1]) + key[0])
        return bits.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    return bits if bit_width == 32 else (bits >> (32 - bit_width)).astype(f"uint{bit_width}")


def _threefry(key: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(key, impl=_THREEFRY)


_HASH: Any = prng.define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl=_THREEFRY)),
    split=lambda key, shape: jax.random.key_data(jax.random.split(_threefry(key), shape)),
    fold_in=lambda key, number: jax.random.key_data(jax.random.fold_in(_threefry(key), number)),
    random_bits=_hash_bits,
    name="ofa_hash",
    tag="oh",
)


def with_bits(key: jax.Array, bits: Literal["threefry", "hash"]) -> jax.Array:
    """Returns the keys `key`, of JAX's own generator, as keys whose bits are made as `bits` says. Raises ValueError for another name."""
    if bits not in BITS:
        raise ValueError(f"model.dropout_bits: found {bits!r}, expected one of {', '.join(BITS)}")
    return key if bits == "threefry" else jax.random.wrap_key_data(jax.random.key_data(key), impl=_HASH)


def is_cheap(key: jax.Array) -> bool:
    """Returns whether bits of the key are made again more cheaply than they are kept."""
    return jax.random.key_impl(key) == _HASH


def again(key: jax.Array) -> jax.Array:
    """Returns the same keys, of which no compiler knows that they are: what is made from them is made a second time."""
    return jax.random.wrap_key_data(lax.optimization_barrier(jax.random.key_data(key)), impl=_HASH)
