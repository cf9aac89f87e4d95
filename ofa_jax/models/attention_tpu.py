"""Attention for TPUs as one Pallas program: scores, position bias, softmax and the product with the values, without leaving the core.

What is added to the scores is made where they are: the absolute part as further dimensions of queries and keys (a head's 64 dimensions use
half of the matrix unit, so these are free), the relative part of sampled patches from the grid's strips (`strips`): a product with one-hot
rows chooses each patch's strip, and turning its registers puts the bias to each key in that key's lane. XLA would gather it, [B, H, P, P]
values of one table, and scatter its gradient, a row after another.

One program takes a group of heads of one sequence, with all keys and as many queries as there is room for; those of all sequences follow
each other, so that what they share is read once and its gradient is summed in place.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from ofa_jax.models.attention import MASKED
from ofa_jax.models.layers import ATTENDED
from ofa_jax.models.position_bias import PositionBias
from ofa_jax.models.strips import Patches, SampledRelative, Strips, round_up

_LANES, _SUBLANES = 128, 8  # of a register: heads are grouped to a multiple of its lanes
_BITS = 7  # of a lane, so that a place p is the lane p & 127 of the register p >> 7; -1 is in none
_MOST_HEADS = 2  # of a group: more would hold too much of their bias at once
_MOST_SCORES = 192 * 1024  # of a head that a program holds at once: a core of v4 has 16 MiB for all of them, their gradients and blocks
_VMEM = 64 * 2**20  # bytes that a program may ask of a core; the compiler refuses what a core has not
_OF_KEYS = ("k", "v", "k_place")
_BY_HEAD = (*_OF_KEYS, "q", "q_place", "out", "d_out")


class Arguments(NamedTuple):
    """The arrays of one attention; those that all sequences share have 1 in place of B."""

    q: jax.Array  # [B, H, S, K], scaled
    k: jax.Array  # [B, H, T, K]
    v: jax.Array  # [B, H, T, K]
    q_place: jax.Array  # [B or 1, H, S, K]: position queries, scaled
    k_place: jax.Array  # [B or 1, H, T, K]: position keys
    dense: jax.Array | None = None  # [B or 1, H, S, T], added to the scores
    strips: jax.Array | None = None  # [H, num, length]: the bias of a grid, cut as `Settings.strips` says
    patches: Patches | None = None  # which cells of the grid the first queries and keys are
    mask: jax.Array | None = None  # bool [B, T] or [B or 1, S, T], True = may be seen


def pallas_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: PositionBias,
    mask: jax.Array | None,
    *,
    causal: bool,
    accum: np.dtype,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    keep: bool = False,
) -> jax.Array:
    """Returns softmax(q k^T + bias) v as [B, H, S, K] in v's dtype, as `attention.reference_attention` does and with its arguments.

    keep: whether the probabilities are kept for the gradient. Heads that the mesh axis `tensor` splits stay split. Raises ValueError for
    what the program does not do: dropout of probabilities, or a softmax in another dtype than f32.
    """
    if key is not None and dropout_rate:
        raise ValueError(f"model.attention_dropout: found {dropout_rate} with model.attention=pallas, expected 0")
    if accum != jnp.float32:
        raise ValueError(f"model.attention: found pallas with a softmax in {accum}, expected one in float32 (precision bf16 or f32)")
    dense, strips, patches, pieces = bias.relative, None, None, None
    if isinstance(dense, SampledRelative):
        strips, patches, pieces, dense = dense.strips, dense.patches, dense.cut, dense.beside(q.shape[2])
    given = Arguments(q, k, v, bias.query, bias.key, dense, strips, patches, mask)
    settings = Settings(causal=causal, strips=pieces, keep=keep, interpret=_STEP_BY_STEP.get())
    if jax.sharding.get_abstract_mesh().shape.get("tensor", 1) == 1:
        return fused_attention(given, settings)
    heads = PartitionSpec(None, "tensor")
    specs = Arguments(heads, heads, heads, heads, heads, heads, PartitionSpec("tensor"), PartitionSpec(), PartitionSpec())
    run = functools.partial(fused_attention, settings=settings)
    return jax.shard_map(run, in_specs=(specs,), out_specs=heads, axis_names={"tensor"}, check_vma=False)(given)


@contextlib.contextmanager
def step_by_step() -> Iterator[None]:
    """Runs the programs that are traced inside as they are written, step by step, on any device: slow, for tests."""
    before = _STEP_BY_STEP.set(True)
    try:
        yield
    finally:
        _STEP_BY_STEP.reset(before)


_STEP_BY_STEP: contextvars.ContextVar[bool] = contextvars.ContextVar("step_by_step", default=False)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is known before the arrays are."""

    causal: bool = False  # query i sees keys 0 .. T - S + i only
    strips: Strips | None = None  # with `Arguments.strips`
    keep: bool = False  # the probabilities for the gradient, [B, H, S, T] in the arguments' dtype, else they are computed again
    interpret: bool | pltpu.InterpretParams = False  # run step by step, as on a CPU


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def fused_attention(arguments: Arguments, settings: Settings) -> jax.Array:
    """Returns softmax(q k^T + q_place k_place^T + dense + bias of the cells) v as [B, H, S, K] in q's dtype; the softmax is in f32.

    A query that sees no key gets the mean of all values.
    """
    return _Plan.of(arguments, settings).run(_forward, arguments, ["out"])["out"]


def _fused_forward(arguments: Arguments, settings: Settings) -> tuple[jax.Array, Any]:
    made = _Plan.of(arguments, settings).run(_forward, arguments, ["out", "kept"] if settings.keep else ["out"])
    out, *kept = (checkpoint_name(value, ATTENDED) for value in made.values())
    return out, (arguments, *kept)


def _fused_backward(settings: Settings, saved: Any, d_out: jax.Array) -> tuple[Arguments]:
    arguments, *kept = saved
    names = [name for name, value in arguments._asdict().items() if value is not None and name not in ("patches", "mask")]
    more = {"d_out": d_out} | ({"kept": kept[0]} if kept else {})
    grads = _Plan.of(arguments, settings).run(_backward, arguments, [f"d_{name}" for name in names], **more)
    found = {name: grads[f"d_{name}"].astype(getattr(arguments, name).dtype) for name in names}
    found |= {name: jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), getattr(arguments, name)) for name in ("patches", "mask")}
    return (Arguments(**(dict.fromkeys(Arguments._fields) | found)),)


fused_attention.defvjp(_fused_forward, _fused_backward)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How arrays are cut to blocks: the program (n, i, b) has the part i of the queries of the sequence b, for the group n of heads."""

    shapes: Mapping[str, tuple[int, ...]]
    dtype: np.dtype
    settings: Settings

    @classmethod
    def of(cls, arguments: Arguments, settings: Settings) -> _Plan:
        shapes = {name: value.shape for name, value in _named(arguments).items()}
        num, heads, queries, _ = arguments.q.shape
        shapes |= dict.fromkeys(("out", "d_out"), arguments.q.shape) | {"kept": (num, heads, queries, arguments.k.shape[2])}
        return cls(shapes, arguments.q.dtype, settings)

    @property
    def heads(self) -> int:
        """Heads of a group."""
        num, width = self.shapes["q"][1], self.shapes["q"][3]
        return next((one for one in range(1, min(num, _MOST_HEADS) + 1) if num % one == 0 and one * width % _LANES == 0), 1)

    @property
    def flat(self) -> bool:
        """Whether heads lie side by side in memory, [B, S, H K] as a projection makes them: no array is turned, no lane left empty."""
        return self.heads * self.shapes["q"][3] % _LANES == 0

    @property
    def parts(self) -> int:
        """Parts of the queries."""
        most = _MOST_SCORES // round_up(self.shapes["k"][2], _LANES)
        return -(-self.shapes["q"][2] // most)

    @property
    def rows(self) -> int:
        """Queries of a part; the last may have fewer."""
        return self.shapes["q"][2] if self.parts == 1 else round_up(-(-self.shapes["q"][2] // self.parts), 2 * _SUBLANES)

    @property
    def patches(self) -> int:
        """The first queries of a part whose bias is looked up, whether they are patches or not: those that are not get none."""
        if "columns" not in self.shapes:
            return 0
        return min(self.rows, self.shapes["columns"][1]) if self.parts == 1 else self.rows

    def place(self, name: str, value: jax.Array) -> jax.Array:
        """Returns an array as its blocks are cut from it."""
        if name in _BY_HEAD and self.flat:
            return value.swapaxes(1, 2).reshape(value.shape[0], value.shape[2], -1)
        if name == "mask":
            return (value[:, None] if value.ndim == 2 else value).astype(jnp.float32)
        if name == "columns" and self.parts > 1:
            return jnp.pad(value, ((0, 0), (0, max(self.parts * self.rows - value.shape[1], 0)), (0, 0)), constant_values=-1)
        return value

    def back(self, name: str, value: jax.Array) -> jax.Array:
        """Returns what a program wrote in the shape of the argument."""
        if name in _OF_KEYS:
            value = value[0] if self.parts == 1 else jnp.sum(value, 0)
        if name in _BY_HEAD and self.flat:
            return value.reshape(*value.shape[:2], self.shapes["q"][1], -1).swapaxes(1, 2)
        return value

    def spec(self, name: str, placed: tuple[int, ...], *, summed: bool = False) -> pl.BlockSpec:
        """Returns the block that a program has of an array that was placed in this shape.

        summed: a gradient of keys, which lie in one array for each part of the queries.
        """
        rows = placed[-2] if name in _OF_KEYS or name in ("strips", "rows") or placed[-2] == 1 else self.rows
        rows = self.patches if name == "columns" else rows
        by_part = rows != placed[-2]
        if name in _BY_HEAD and self.flat:
            block: list[int | None] = [None, rows, self.heads * self.shapes[name][3]]
        elif name in _BY_HEAD:
            block = [None, None, rows, placed[-1]]
        else:
            block = [None, self.heads, rows, placed[-1]] if len(placed) == 4 else [None, rows, placed[-1]]
        if name == "strips":
            block[0] = self.heads

        def at(n: Any, i: Any, b: Any) -> tuple[Any, ...]:
            sequence, part = b if self.shapes[name][0] > 1 else 0, i if by_part else 0
            if name == "strips":
                return n, 0, 0
            if len(block) == 4:
                return sequence, n, part, 0
            return sequence, part, n if name in _BY_HEAD else 0

        return pl.BlockSpec((None, *block), lambda n, i, b: (i, *at(n, i, b))) if summed else pl.BlockSpec(block, at)

    def shared(self, name: str) -> bool:
        """Whether all sequences have one such array, whose gradient is the sum of theirs."""
        return name == "strips" or (name != "kept" and self.shapes[name][0] == 1 and self.shapes["q"][0] > 1)

    def run(self, kernel: Callable[..., None], arguments: Arguments, wanted: list[str], **more: jax.Array) -> dict[str, jax.Array]:
        """Returns what `kernel` makes, by name: "out", or "d_" and the name of an argument, in f32 where it is a sum of several."""
        placed = {name: self.place(name, value) for name, value in {**_named(arguments), **more}.items()}
        made = {name: name if name in self.shapes else name.removeprefix("d_") for name in wanted}
        shapes, specs = [], []
        for name in made.values():
            shape = {"out": placed["q"].shape, "kept": self.shapes["kept"]}.get(name) or placed[name].shape
            wide = self.shared(name) or name == "dense" or (name in _OF_KEYS and self.parts > 1)
            dtype = jnp.float32 if wide else self.dtype
            specs.append(self.spec(name, shape, summed=name in _OF_KEYS))
            shapes.append(jax.ShapeDtypeStruct((self.parts, *shape) if name in _OF_KEYS else shape, dtype))
        done = pl.pallas_call(
            lambda *refs: kernel(self, dict(zip([*placed, *wanted], refs, strict=True))),
            out_shape=shapes,
            grid=(self.shapes["q"][1] // self.heads, self.parts, self.shapes["q"][0]),
            in_specs=[self.spec(name, value.shape) for name, value in placed.items()],
            out_specs=specs,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=_VMEM),
            interpret=self.settings.interpret,
            name=f"attention{kernel.__name__}",
        )(*placed.values())
        return {name: self.back(one, value) for (name, one), value in zip(made.items(), done, strict=True)}


def _dot(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """Returns the product of two matrices over these axes of theirs, in f32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


class _Lookup:
    """The bias between a sequence's patches; what it is found by is the same for all heads."""

    def __init__(self, plan: _Plan, refs: Mapping[str, Any], *, backward: bool):
        strips = plan.settings.strips
        assert strips is not None
        self.plan, (self.num, self.length) = plan, strips.shape
        strip, shift = refs["columns"][: plan.patches, 0:1], refs["columns"][: plan.patches, 1:2]  # [R, 1]
        self.chosen = (lax.broadcasted_iota(jnp.int32, (plan.patches, self.num), 1) == strip).astype(plan.dtype)
        keys = round_up(plan.shapes["columns"][1], _LANES)
        self.places = [refs["rows"][0:1, tile] for tile in _tiles(keys)]  # [1, 128] of each register of keys
        self.lane = [(places + shift) & (_LANES - 1) for places in self.places]  # of a strip's register that a key's lane is filled from
        if backward:
            wide = (plan.patches, _LANES)
            before = (lax.broadcasted_iota(jnp.int32, wide, 1) - shift) & (_LANES - 1)
            self.keys = [_turn(jnp.broadcast_to(refs["rows"][1:2, tile], wide), before) for tile in _tiles(self.length)]

    def bias(self, table: jax.Array) -> jax.Array:
        """Returns the bias of the first queries to all keys [R, N], f32, from strips [num, length] of one head; 0 where there is none."""
        strips = _dot(self.chosen, table, (1, 0))  # exact: sums of one term
        found = []
        for places, lane in zip(self.places, self.lane, strict=True):
            tile = jnp.zeros((self.plan.patches, _LANES), jnp.float32)
            for number, part in enumerate(_tiles(self.length)):
                tile = jnp.where(places >> _BITS == number, _turn(strips[:, part], lane), tile)
            found.append(tile)
        return jnp.concatenate(found, axis=1)

    def gradient(self, d_bias: jax.Array) -> jax.Array:
        """Returns the gradient of the strips, in f32, from that of the first queries' bias to all keys [R, T]."""
        tiles = [jnp.pad(x, ((0, 0), (0, _LANES - x.shape[1]))) for x in (d_bias[:, tile] for tile in _tiles(d_bias.shape[1]))]
        parts = []
        for keys in self.keys:
            part = jnp.zeros((self.plan.patches, _LANES), jnp.float32)
            for number, tile in enumerate(tiles[: len(self.places)]):
                part = jnp.where(keys >> _BITS == number, _turn(tile, keys & (_LANES - 1)), part)
            parts.append(part.astype(self.plan.dtype))
        return _dot(self.chosen, jnp.concatenate(parts, axis=1), (0, 0))


def _turn(x: jax.Array, lanes: jax.Array) -> jax.Array:
    """Returns x [R, 128] with each lane filled from the lane of its row that `lanes`, int32 [R, 128], names."""
    numbers = lax.GatherDimensionNumbers((), (1,), (1,), operand_batching_dims=(0,), start_indices_batching_dims=(0,))
    return lax.gather(x, lanes[..., None], numbers, slice_sizes=(1, 1), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)


def _tiles(length: int) -> list[slice]:
    """Returns the registers' lanes that cover a length."""
    return [slice(start, start + _LANES) for start in range(0, length, _LANES)]


def _named(arguments: Arguments) -> dict[str, jax.Array]:
    """Returns the arrays of the arguments by name."""
    flat = arguments._asdict()
    patches = flat.pop("patches")
    return {name: value for name, value in {**flat, **(patches._asdict() if patches else {})}.items() if value is not None}


class _Head:
    """One head of a program: what is read, and the scores of its queries."""

    def __init__(self, plan: _Plan, refs: Mapping[str, Any], number: int, lookup: _Lookup | None):
        self.plan, self.refs, self.number, self.lookup = plan, refs, number, lookup
        width = plan.shapes["q"][3]
        self.lanes = slice(number * width, (number + 1) * width) if plan.flat else slice(None)
        self.first = pl.program_id(1) * plan.rows  # of the queries
        self.shape = (plan.rows, plan.shapes["k"][2])
        self.q, self.k, self.v = self.read("q", "q_place"), self.read("k", "k_place"), self.read("v")

    def read(self, *names: str) -> jax.Array:
        """Returns arrays of this head, side by side; queries behind the last are 0."""
        value = jnp.concatenate([self.refs[name][:, self.lanes] for name in names], axis=1)
        return value if names[0] in _OF_KEYS else self.there(value)

    def there(self, value: jax.Array) -> jax.Array:
        """Returns a value of each query with 0 for those behind the last, of which a part may have some: what is read there is anything."""
        if self.plan.parts * self.plan.rows == self.plan.shapes["q"][2]:
            return value
        row = lax.broadcasted_iota(jnp.int32, (value.shape[0], 1), 0) + self.first
        return jnp.where(row < self.plan.shapes["q"][2], value, jnp.zeros((), value.dtype))

    def seen(self) -> jax.Array | None:
        """Returns which keys the queries see, bool broadcastable to [R, T], or None where they see all."""
        seen = self.refs["mask"][...] > 0 if "mask" in self.refs else None
        if self.plan.settings.causal:
            last = lax.broadcasted_iota(jnp.int32, self.shape, 0) + (self.first + self.shape[1] - self.plan.shapes["q"][2])
            before = lax.broadcasted_iota(jnp.int32, self.shape, 1) <= last
            seen = before if seen is None else before & seen
        return seen

    def weights(self) -> tuple[jax.Array, jax.Array]:
        """Returns exp(scores - their maximum) [R, T] in f32 and the sums of its rows [R, 1]."""
        scores = _dot(self.q, self.k, (1, 1))
        if "dense" in self.refs:
            scores = scores + self.there(self.refs["dense"][self.number].astype(jnp.float32))
        if self.lookup is not None:
            between = self.lookup.bias(self.refs["strips"][self.number].astype(self.plan.dtype))[:, : self.shape[1]]
            scores = scores + jnp.pad(between, [(0, size - part) for size, part in zip(self.shape, between.shape, strict=True)])
        seen = self.seen()
        if seen is not None:
            scores = jnp.where(seen, scores, MASKED)
        weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
        return weights, jnp.sum(weights, axis=1, keepdims=True)

    def probabilities(self) -> jax.Array:
        """Returns the softmax of the scores [R, T] in f32; those of queries behind the last are 0."""
        if "kept" in self.refs:
            return self.there(self.refs["kept"][self.number].astype(jnp.float32))
        weights, sums = self.weights()
        return self.there(weights / sums)


def _forward(plan: _Plan, refs: Mapping[str, Any]) -> None:
    lookup = _Lookup(plan, refs, backward=False) if plan.patches else None
    for number in range(plan.heads):
        head = _Head(plan, refs, number, lookup)
        weights, sums = head.weights()
        if "kept" in refs:
            narrow = (weights / sums).astype(plan.dtype)
            refs["kept"][number] = narrow
            out = _dot(narrow, head.v, (1, 0))
        else:
            out = _dot(weights.astype(plan.dtype), head.v, (1, 0)) / sums
        refs["out"][:, head.lanes] = out.astype(plan.dtype)


def _backward(plan: _Plan, refs: Mapping[str, Any]) -> None:
    first_sequence = pl.program_id(2) == 0
    first_of_all = first_sequence & (pl.program_id(1) == 0)

    def give(name: str, where: Any, value: jax.Array) -> None:
        """Writes a gradient, or adds it to that of the sequences before."""
        ref = refs[f"d_{name}"]
        if not plan.shared(name):
            ref[where] = value.astype(ref.dtype)
            return
        first = first_of_all if name == "strips" else first_sequence

        @pl.when(first)
        def _() -> None:
            ref[where] = value

        @pl.when(jnp.logical_not(first))
        def _() -> None:
            ref[where] = ref[where] + value

    lookup = _Lookup(plan, refs, backward=True) if plan.patches else None
    width = plan.shapes["q"][3]
    for number in range(plan.heads):
        head = _Head(plan, refs, number, lookup)
        d_out, probabilities, seen = head.read("d_out"), head.probabilities(), head.seen()
        place = (slice(None), head.lanes)
        give("v", place, _dot(probabilities.astype(plan.dtype), d_out, (0, 0)))
        d_probabilities = _dot(d_out, head.v, (1, 1))
        d_scores = probabilities * (d_probabilities - jnp.sum(probabilities * d_probabilities, axis=1, keepdims=True))
        if seen is not None:
            d_scores = jnp.where(seen, d_scores, 0.0)
        narrow = d_scores.astype(plan.dtype)
        d_q, d_k = _dot(narrow, head.k, (1, 0)), _dot(narrow, head.q, (0, 0))
        for name, d_both in (("q", d_q), ("k", d_k)):
            give(name, place, d_both[:, :width])
            give(f"{name}_place", place, d_both[:, width:])
        if "dense" in refs:
            give("dense", number, d_scores)
        if lookup is not None:
            give("strips", number, lookup.gradient(d_scores[: plan.patches]))
