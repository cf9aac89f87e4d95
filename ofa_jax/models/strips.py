"""The relative bias of a picture's grid in a form that TPUs can look up.

The bias of a query's cell (r, c) to all cells (r', c') is a window of one table: T[r - r', c - c'], some 2,209 numbers a head for a grid of
24 x 24, while a matrix with a row a cell has 331,776. Between the two lies the strip: one row for each row of the grid and each `block` of
its columns, long enough that the windows of all cells of the block are in it, at a shift of their own. A row of 24 cells takes 32 places.

    strip of (r, c // block), at r' * stride + j:   T[r - r', (c // block) * block + block - 1 - j]
    bias of (r, c) to (r', c'):                     its strip at r' * stride + c' + shift, shift = block - 1 - c % block

So a bias is one product with one-hot rows that choose strips, and a window of each.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ofa_jax.models.position_bias import toeplitz

_LANES, _SUBLANES = 128, 8  # of a TPU's register


@dataclasses.dataclass(frozen=True)
class Strips:
    """How the strips of a grid of `height` x `width` cells are cut."""

    height: int
    width: int
    stride: int  # places a row of the grid takes in a strip, a divisor of 128 or a multiple of it
    block: int  # columns that share a strip

    @property
    def blocks(self) -> int:
        """Strips a row of the grid."""
        return -(-self.width // self.block)

    @property
    def shape(self) -> tuple[int, int]:
        """Number and length of the strips; the length is a multiple of 128."""
        return self.height * self.blocks, round_up(self.height * self.stride, _LANES)

    def strip(self, cells: jax.Array) -> jax.Array:
        """Returns the strip of each cell, int32."""
        return cells // self.width * self.blocks + cells % self.width // self.block

    def shift(self, cells: jax.Array) -> jax.Array:
        """Returns how far each cell's window lies from the start of its strip."""
        return self.block - 1 - cells % self.width % self.block

    def place(self, cells: jax.Array) -> jax.Array:
        """Returns where a window holds the bias to each cell."""
        return cells // self.width * self.stride + cells % self.width


def cut(height: int, width: int) -> Strips:
    """Returns the cut that takes the least work of units of 128 x 128."""

    def cost(one: Strips) -> tuple[int, int]:
        rows, columns = (-(-size // _LANES) for size in one.shape)
        return columns * (2 * rows + 1), one.block

    strides = [stride for power in range(12) if (stride := 2**power) >= width]
    return min((Strips(height, width, stride, block) for stride in strides[:2] for block in range(1, stride - width + 2)), key=cost)


def grid_strips(table: jax.Array, strips: Strips, *, side: int) -> jax.Array:
    """Returns the strips [H, num, length] of one layer's table [num_image_buckets, H]; side: `image_bucket_size`.

    Made of slices and reshapes alone, so that the gradient has no scatter. Places that no window holds are 0.
    """
    height, width, block = strips.height, strips.width, strips.block
    span = 2 * side - 1
    square = table[: span**2].reshape(span, span, -1)
    near = square[side - height : side + height - 1, side - width : side + width - 1]  # [2h-1, 2w-1, H], at distance 0 in the middle
    reach = max(strips.stride - block, strips.blocks * block - 1) - (width - 1)  # distances beyond the grid that places stand for
    near = jnp.pad(near, ((0, 0), (max(reach, 0), max(reach, 0)), (0, 0)))
    middle = near.shape[1] // 2
    by_block = []
    for number in range(strips.blocks):
        first = middle + number * block + block - 1  # distance of j = 0
        by_block.append(near[:, first - strips.stride + 1 : first + 1][:, ::-1])
    rows = toeplitz(jnp.stack(by_block, 1), height)  # [h, h', blocks, stride, H]
    flat = rows.transpose(4, 0, 2, 1, 3).reshape(-1, strips.shape[0], height * strips.stride)
    return jnp.pad(flat, ((0, 0), (0, 0), (0, strips.shape[1] - flat.shape[2])))


class Patches(NamedTuple):
    """Where the bias of a sequence's P patches is found, from `find_patches`; -1 where there is none. Made once for all layers."""

    columns: jax.Array  # int32 [B, P to a multiple of 8, 2]: the strip of each patch, and its shift
    rows: jax.Array  # int32 [B, 2, N]: the place of each patch, and the patch of each place; N a multiple of 128


@functools.partial(jax.tree_util.register_dataclass, data_fields=["strips", "patches", "text"], meta_fields=["cut"])
@dataclasses.dataclass(frozen=True)
class SampledRelative:
    """A layer's relative bias of sequences that see patches of their own, kept as what it is found by."""

    strips: jax.Array  # [H, num, length]
    patches: Patches
    text: jax.Array  # [1, H, S, S], of the tokens behind the patches
    cut: Strips

    def beside(self, length: int) -> jax.Array:
        """Returns the text's part as a bias of all [1, H, length, length], 0 beside it."""
        before = length - self.text.shape[-1]
        return jnp.pad(self.text, ((0, 0), (0, 0), (before, 0), (before, 0)))


def find_patches(cells: jax.Array, strips: Strips) -> Patches:
    """Returns where the patches at these cells are found, int32 [B, P], each cell at most once in a row."""
    length, num = strips.shape[1], cells.shape[1]
    strip, place = strips.strip(cells), strips.place(cells)
    at_place = jnp.max(jnp.where(place[:, None] == jnp.arange(length)[:, None], jnp.arange(num), -1), 2)

    def pad(x: jax.Array, to: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, to - x.shape[1])), constant_values=-1)

    tall, wide = round_up(num, _SUBLANES), max(round_up(num, _LANES), length)
    columns = jnp.stack([pad(strip, tall), pad(strips.shift(cells), tall)], 2)
    return Patches(columns, jnp.stack([pad(place, wide), pad(at_place, wide)], 1))


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple that is not below a number."""
    return -(-number // multiple) * multiple
