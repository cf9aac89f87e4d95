"""OFA's position bias: an absolute part (position queries times position keys) and a relative part (one table a layer).

Position ids of pictures are `side * row + column + 1` with side = `image_bucket_size`, whatever the picture's own grid; id 0 is the
BOS of a code sequence. Relative positions are query minus key. Buckets are computed on the host in NumPy: at the far end of the
1-D table the argument of `ceil` is exactly an integer, and a device logarithm that is one ulp high would leave the table.

Tables are read by slices and reshapes ("Toeplitz", below) wherever positions form a full grid or a line, because the gradient of a
gather is a scatter-add, which is slow everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ofa_jax.config.schema import ModelConfig
from ofa_jax.models.layers import Embedding, LayerNorm, Linear
from ofa_jax.models.precision import Policy

if TYPE_CHECKING:
    from ofa_jax.models.strips import SampledRelative


class PositionBias(NamedTuple):
    """The bias added to attention scores, kept in parts so that an implementation may fold or tile it.

    `absolute` is the dense form of `query` x `key`, made once for all layers that share it.
    """

    query: jax.Array  # [B or 1, H, S, K], scaled position queries
    key: jax.Array  # [B or 1, H, T, K], position keys
    absolute: jax.Array | None  # [B or 1, H, S, T]; None for an implementation that makes it where it is added
    relative: jax.Array | SampledRelative | None = None  # [B or 1, H, S, T], of one layer

    def dense(self, dtype: np.dtype) -> jax.Array:
        """Returns the whole bias as [B or 1, H, S, T]."""
        absolute, relative = self._made()
        if relative is None:
            return absolute.astype(dtype)
        return absolute.astype(dtype) + relative.astype(dtype)

    def at(self, query_places: jax.Array, key_places: jax.Array | None = None) -> PositionBias:
        """Returns the bias of queries and keys (None: all keys in order) that lie at these places, int [B or 1, S] and [B or 1, T]."""

        def pick(x: jax.Array, axis: int, places: jax.Array | None) -> jax.Array:
            if places is None:
                return x
            if places.shape[0] == 1:
                return jnp.take(x, places[0], axis)
            x = jnp.broadcast_to(x, (places.shape[0], *x.shape[1:]))
            return jax.vmap(lambda one, chosen: jnp.take(one, chosen, axis - 1))(x, places)

        def both(x: jax.Array) -> jax.Array:
            return pick(pick(x, 2, query_places), 3, key_places)

        absolute, relative = self._made()
        relative = None if relative is None else both(relative)
        return PositionBias(pick(self.query, 2, query_places), pick(self.key, 2, key_places), both(absolute), relative)

    def behind(self, length: int) -> PositionBias:
        """Returns the bias with `length` further keys in front that have none."""

        def pad(x: jax.Array, axis: int) -> jax.Array:
            return jnp.pad(x, [(length, 0) if i == axis else (0, 0) for i in range(x.ndim)])

        absolute, relative = self._made()
        return PositionBias(self.query, pad(self.key, 2), pad(absolute, 3), None if relative is None else pad(relative, 3))

    def _made(self) -> tuple[jax.Array, jax.Array | None]:
        """Returns both parts, which an implementation that asked for less cannot have here."""
        if self.absolute is None or not isinstance(self.relative, jax.Array | None):
            raise TypeError("position bias: found parts that are not made, expected the bias of all pairs (model.attention=reference)")
        return self.absolute, self.relative


def absolute_bias(query: jax.Array, key: jax.Array, accum: np.dtype) -> PositionBias:
    """Returns the bias of position queries [B|1, H, S, K] and keys [B|1, H, T, K]; f32 when shared by the batch, else their dtype."""
    if query.shape[0] == key.shape[0]:
        dense = jnp.einsum("bhsk,bhtk->bhst", query, key, preferred_element_type=accum)
    elif key.shape[0] == 1:
        dense = jnp.einsum("bhsk,htk->bhst", query, key[0], preferred_element_type=accum)
    else:
        dense = jnp.einsum("hsk,bhtk->bhst", query[0], key, preferred_element_type=accum)
    return PositionBias(query, key, dense if dense.shape[0] == 1 else dense.astype(query.dtype))


class PositionProjection(nnx.Module):
    """One pair of projections with biases, shared by all layers of a stack, from normalised positions to scaled position heads."""

    def __init__(self, width: int, num_heads: int, *, scale_factor: float, std: float, policy: Policy):
        self.query = Linear(width, width, ("width", "heads"), std=std, policy=policy)
        self.key = Linear(width, width, ("width", "heads"), std=std, policy=policy)
        self.num_heads, self.scale, self.accum = num_heads, (width // num_heads * scale_factor) ** -0.5, policy.accum

    def queries(self, positions: jax.Array) -> jax.Array:
        """positions [B or 1, S, D] -> scaled position queries [B or 1, H, S, K]."""
        return self._split(self.query(positions) * self.scale)

    def keys(self, positions: jax.Array) -> jax.Array:
        """positions [B or 1, T, D] -> position keys [B or 1, H, T, K]."""
        return self._split(self.key(positions))

    def __call__(self, query_positions: jax.Array, key_positions: jax.Array, *, dense: bool = True) -> PositionBias:
        """Returns the absolute bias between positions [B or 1, S, D] and [B or 1, T, D]; dense: of all pairs, or left to the attention."""
        query, key = self.queries(query_positions), self.keys(key_positions)
        return absolute_bias(query, key, self.accum) if dense else PositionBias(query, key, None)

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)


class PositionTable(nnx.Module):
    """Learned positions of a stack: one table for text places, one for picture cells (with `pictures`), each with its own LayerNorm."""

    def __init__(self, config: ModelConfig, num_text: int, *, pictures: bool = True, policy: Policy):
        std, eps = config.init_std, config.layer_norm_eps
        axes = ("positions", "width")
        self.text = Embedding(num_text, config.width, axes, std=std, policy=policy)
        if pictures:
            self.image = Embedding(config.num_image_positions, config.width, axes, std=std, policy=policy)
        self.text_norm = LayerNorm(config.width, eps=eps, policy=policy)
        if pictures:
            self.image_norm = LayerNorm(config.width, eps=eps, policy=policy)
        self.config = config

    def text_positions(self, length: int) -> jax.Array:
        """Returns the normalised positions [length, D] of text columns 0 .. length-1; padding does not shift them."""
        return self.text_norm(self.text.first(length))

    def grid_positions(self, height: int, width: int) -> jax.Array:
        """Returns the normalised positions [height*width, D] of a picture grid, row by row.

        With `interpolate_position`, a grid larger than the original picture's is a bilinear resize of the original block.
        """
        config = self.config
        original = config.orig_patch_image_px // config.resnet.stride
        if config.interpolate_position and height * width > original**2:
            block = self._block(original, original)
            resized = jax.image.resize(block, (height, width, block.shape[-1]), "linear", antialias=False)
            return self.image_norm(resized.reshape(height * width, -1))
        return self.image_norm(self._block(height, width).reshape(height * width, -1))

    def code_positions(self, length: int) -> jax.Array:
        """Returns the normalised positions [length, D] of a code sequence: id 0 for BOS, the code grid, then the filler."""
        config, rows = self.config, self.image.table[...]
        grid = self._block(config.code_grid, config.code_grid).reshape(config.code_grid**2, -1)
        num_filler = max(0, length - 1 - grid.shape[0])
        filler = jnp.broadcast_to(rows[config.code_filler_id], (num_filler, rows.shape[1])).astype(grid.dtype)
        return self.image_norm(jnp.concatenate([rows[:1].astype(grid.dtype), grid, filler])[:length])

    def _block(self, height: int, width: int) -> jax.Array:
        side, rows = self.config.image_bucket_size, self.image.table[...].astype(self.image.compute)
        if height > side or width > side:
            raise ValueError(f"image grid: found {height}x{width} patches, expected at most {side}x{side} (model.image_bucket_size)")
        return rows[1:].reshape(side, side, -1)[:height, :width]  # ids are side * row + column + 1, so a grid is a corner of the table


# --- 1-D: text -------------------------------------------------------------------------------------------------------------------


def token_buckets(relative: np.ndarray, *, bucket_size: int, max_positions: int) -> np.ndarray:
    """Returns the bucket 0 .. 2*bucket_size-2 of each relative position (query minus key), linear near 0 and logarithmic beyond.

    Args:
      relative: integers with magnitude below `max_positions`.
    """
    relative = np.asarray(relative)
    if np.abs(relative).max(initial=0) >= max_positions:
        raise ValueError(f"text distance: found {np.abs(relative).max()}, expected less than model.max_positions = {max_positions}")
    middle = bucket_size // 2
    distance = np.abs(relative)
    steps = np.log(np.maximum(distance, 1) / middle) / np.log((max_positions - 1) / middle) * (middle - 1)
    far = (np.ceil(steps).astype(np.int64) + middle) * np.sign(relative)
    return (np.where(distance <= middle, relative, far) + bucket_size - 1).astype(np.int32)


def token_relative(table: jax.Array, length: int, config: ModelConfig) -> jax.Array:
    """Returns the relative text bias [H, length, length] from one layer's table [num_token_buckets, H].

    Raises:
      ValueError: `length` is above `max_positions`, where the buckets end (the official code fails there too).
    """
    if length > config.max_positions:
        raise ValueError(f"text length: found {length}, expected at most model.max_positions = {config.max_positions}")
    distances = np.arange(-(length - 1), length)
    by_distance = table[token_buckets(distances, bucket_size=config.token_bucket_size, max_positions=config.max_positions)]
    return jnp.moveaxis(toeplitz(by_distance, length), -1, 0)


def toeplitz(by_distance: jax.Array, length: int) -> jax.Array:
    """by_distance [2*length-1, ...], entry d + length-1 for distance d -> [length, length, ...] with entry [i, j] at distance i - j.

    The rows of the result are one cyclic sequence cut at a shifting place, so tiling and reshaping make it without any index.
    """
    tail = by_distance.shape[1:]
    row = jnp.concatenate([by_distance[::-1], jnp.zeros((1, *tail), by_distance.dtype)])  # period 2*length
    flat = jnp.broadcast_to(row, (length, *row.shape)).reshape(length * 2 * length, *tail)
    return flat[: length * (2 * length - 1)].reshape(length, 2 * length - 1, *tail)[:, length - 1 :]


# --- 2-D: pictures and codes -----------------------------------------------------------------------------------------------------


def image_position_ids(height: int, width: int, *, side: int) -> np.ndarray:
    """Returns the position ids [height * width] of a grid, row by row: side * row + column + 1."""
    if height > side or width > side:
        raise ValueError(f"image grid: found {height}x{width} patches, expected at most {side}x{side} (model.image_bucket_size)")
    return (side * np.arange(height)[:, None] + np.arange(width)[None] + 1).reshape(-1).astype(np.int32)


def code_position_ids(length: int, config: ModelConfig) -> np.ndarray:
    """Returns the image position ids [length] of a decoder that writes codes: 0 for BOS, its own cell for each code, then the filler."""
    grid = image_position_ids(config.code_grid, config.code_grid, side=config.image_bucket_size)
    filler = np.full(max(0, length - 1 - grid.size), config.code_filler_id, np.int32)
    return np.concatenate([np.zeros(1, np.int32), grid, filler])[:length]


def image_buckets(query_ids: jax.Array | np.ndarray, key_ids: jax.Array | np.ndarray, *, side: int) -> jax.Array:
    """Returns the 2-D bucket of image position ids that broadcast against each other; id 0 has three buckets of its own at the end."""
    span = 2 * side - 1
    xp = np if isinstance(query_ids, np.ndarray) and isinstance(key_ids, np.ndarray) else jnp
    qr, qc = (query_ids - 1) // side, (query_ids - 1) % side
    kr, kc = (key_ids - 1) // side, (key_ids - 1) % side
    grid = (qr - kr + side - 1) * span + (qc - kc + side - 1)
    query_bos, key_bos = query_ids == 0, key_ids == 0
    grid = xp.where(query_bos, span**2, xp.where(key_bos, span**2 + 1, grid))
    return xp.where(query_bos & key_bos, span**2 + 2, grid)


def grid_relative(table: jax.Array, height: int, width: int, *, side: int) -> jax.Array:
    """Returns the relative bias [H, height*width, height*width] of a full grid from one layer's table [num_image_buckets, H]."""
    span = 2 * side - 1
    square = table[: span**2].reshape(span, span, -1)
    near = square[side - height : side + height - 1, side - width : side + width - 1]  # [2h-1, 2w-1, H]
    rows = toeplitz(near, height)  # [h, h', 2w-1, H]
    both = toeplitz(jnp.moveaxis(rows, 2, 0), width)  # [w, w', h, h', H]
    return both.transpose(4, 2, 0, 3, 1).reshape(-1, height * width, height * width)


def ids_relative(table: jax.Array, query_ids: jax.Array, key_ids: jax.Array, *, side: int) -> jax.Array:
    """Returns the relative bias [..., H, S, T] for arbitrary image position ids [..., S] and [..., T] (sampled patches)."""
    buckets = image_buckets(query_ids[..., :, None], key_ids[..., None, :], side=side)
    return jnp.moveaxis(jnp.take(table, buckets, axis=0, mode="clip"), -1, -3)


def code_relative(table: jax.Array, length: int, config: ModelConfig) -> jax.Array:
    """Returns the relative bias [H, length, length] of a code sequence: BOS, the code grid, then fillers."""
    grid, side = config.code_grid, config.image_bucket_size
    if length > 1 + grid * grid:
        ids = code_position_ids(length, config)
        return ids_relative(table, ids, ids, side=side)
    cells = grid_relative(table, grid, grid, side=side)[:, : length - 1, : length - 1]
    bos_query, bos_key, bos_both = (table[(2 * side - 1) ** 2 + i][:, None, None] for i in range(3))
    column = jnp.broadcast_to(bos_key, (cells.shape[0], length - 1, 1))
    row = jnp.broadcast_to(bos_query, (cells.shape[0], 1, length - 1))
    return jnp.concatenate([jnp.concatenate([bos_both, row], 2), jnp.concatenate([column, cells], 2)], 1)


def join_blocks(image: jax.Array | None, text: jax.Array) -> jax.Array:
    """Returns the encoder's relative bias [B or 1, H, P+S, P+S]: image [B or 1, H, P, P] and text [1, H, S, S] on the diagonal, else 0."""
    if image is None:
        return text
    patches, tokens = image.shape[-1], text.shape[-1]
    none = (0, 0)
    return jnp.pad(image, (none, none, (0, tokens), (0, tokens))) + jnp.pad(text, (none, none, (patches, 0), (patches, 0)))
