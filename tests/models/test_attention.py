"""Faster attentions against the reference: that of TPUs run step by step here, and compiled for TPUs where libtpu is installed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import SingleDeviceSharding

from ofa_jax.config.hardware import parse_topology
from ofa_jax.models.attention import reference_attention
from ofa_jax.models.attention_cudnn import cudnn_attention
from ofa_jax.models.attention_tpu import Arguments, Settings, fused_attention
from ofa_jax.models.layers import REMAT
from ofa_jax.models.position_bias import PositionBias, absolute_bias, grid_relative, ids_relative, image_position_ids
from ofa_jax.models.strips import Strips, cut, find_patches, grid_strips, round_up
from ofa_jax.pods.devices import describe

SIDE = 42


@dataclasses.dataclass(frozen=True)
class Case:
    """An attention to be tried."""

    rows: int
    heads: int
    queries: int
    keys: int
    width: int
    shared: bool = True  # positions, by all sequences
    dense: bool = True
    grid: tuple[int, int] | None = None
    patches: int = 0
    mask: str = "keys"
    causal: bool = False

    @property
    def strips(self) -> Strips | None:
        return cut(*self.grid) if self.grid else None


CASES = {
    "sampled patches": Case(2, 4, 33, 33, 8, grid=(5, 7), patches=21),
    "several strips a row": Case(2, 2, 50, 50, 8, grid=(14, 14), patches=40, dense=False),
    "all lanes of a register": Case(1, 2, 141, 141, 64, shared=False, grid=(12, 11), patches=129),
    "more queries than are held at once": Case(1, 2, 403, 403, 64, grid=(20, 20), patches=390),
    "only patches": Case(2, 2, 13, 13, 64, grid=(4, 4), patches=13, dense=False, mask="none"),
    "all patches": Case(2, 2, 16, 16, 80, mask="keys"),
    "cross": Case(3, 4, 5, 31, 64, shared=False, dense=False),
    "text": Case(3, 4, 30, 30, 64, causal=True),
    "behind a prompt": Case(2, 2, 7, 12, 64, causal=True, mask="none"),
    "a tree": Case(2, 2, 9, 9, 16, mask="pairs"),
    "one token": Case(2, 2, 1, 1, 64, causal=True),
}


def draw(case: Case, dtype: Any = jnp.float32) -> tuple[dict[str, jax.Array], jax.Array | None, jax.Array | None, jax.Array]:
    """Returns (what has a gradient, the cells of the patches, the mask, weights of the output)."""
    rng = np.random.default_rng(0)
    shared = 1 if case.shared else case.rows

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)

    values = {
        "q": normal(case.rows, case.heads, case.queries, case.width, scale=case.width**-0.5).astype(dtype),
        "k": normal(case.rows, case.heads, case.keys, case.width).astype(dtype),
        "v": normal(case.rows, case.heads, case.keys, case.width).astype(dtype),
        "q_place": normal(shared, case.heads, case.queries, case.width, scale=case.width**-0.5).astype(dtype),
        "k_place": normal(shared, case.heads, case.keys, case.width).astype(dtype),
    }
    if case.dense:
        values["dense"] = normal(shared, case.heads, case.queries, case.keys)
    cells = None
    if case.grid:
        values["table"] = normal((2 * SIDE - 1) ** 2 + 3, case.heads)
        size = case.grid[0] * case.grid[1]
        cells = jnp.asarray(np.stack([rng.permutation(size)[: case.patches] for _ in range(case.rows)]), jnp.int32)
    shape = {"keys": (case.rows, case.keys), "pairs": (case.rows, case.queries, case.keys), "none": None}[case.mask]
    mask = None if shape is None else jnp.asarray(rng.random(shape) < 0.7).at[..., 0].set(True)
    return values, cells, mask, normal(case.rows, case.heads, case.queries, case.width).astype(dtype)


def whole_bias(case: Case, values: dict[str, jax.Array], cells: jax.Array | None) -> PositionBias:
    relative = values.get("dense", jnp.zeros((1, case.heads, case.queries, case.keys)))
    if cells is not None and case.grid:
        ids = jnp.asarray(image_position_ids(*case.grid, side=SIDE))[cells]
        beside = ((0, 0), (0, 0), (0, case.queries - case.patches), (0, case.keys - case.patches))
        relative = relative + jnp.pad(ids_relative(values["table"], ids, ids, side=SIDE), beside)
    return absolute_bias(values["q_place"], values["k_place"], np.dtype(np.float32))._replace(relative=relative)


def by_reference(case: Case, values: dict[str, jax.Array], cells: jax.Array | None, mask: jax.Array | None) -> jax.Array:
    options = {"causal": case.causal, "accum": np.dtype(np.float32)}
    return reference_attention(values["q"], values["k"], values["v"], whole_bias(case, values, cells), mask, **options)


def by_program(
    case: Case, values: dict[str, jax.Array], cells: jax.Array | None, mask: jax.Array | None, *, keep: bool, interpret: Any = True
) -> jax.Array:
    values = dict(values)
    table = values.pop("table", None)
    strips, patches = None, None
    if case.strips and cells is not None and table is not None:
        strips, patches = grid_strips(table, case.strips, side=SIDE), find_patches(cells, case.strips)
    settings = Settings(causal=case.causal, strips=case.strips, keep=keep, interpret=interpret)
    return fused_attention(Arguments(**values, strips=strips, patches=patches, mask=mask), settings)


def by_cudnn(
    case: Case, values: dict[str, jax.Array], cells: jax.Array | None, mask: jax.Array | None, *, implementation: Any = "cudnn"
) -> jax.Array:
    options = {"causal": case.causal, "accum": np.dtype(np.float32), "implementation": implementation}
    return cudnn_attention(values["q"], values["k"], values["v"], whole_bias(case, values, cells), mask, **options)


def run(attention: Any, case: Case, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Returns the output and the gradients of its weighted sum."""
    values, cells, mask, weights = draw(case, dtype)

    def loss(values: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        out = attention(case, values, cells, mask)
        return jnp.sum((out * weights).astype(jnp.float32)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(values)
    return {"out": out, **grads}


def distance(one: dict[str, jax.Array], other: dict[str, jax.Array]) -> dict[str, float]:
    """Returns the norm of each difference over that of the second, or as it is where the second is 0 as it should be."""
    assert set(one) == set(other) and all(np.isfinite(value).all() for value in one.values())
    wide = {name: (np.asarray(one[name], np.float64), np.asarray(other[name], np.float64)) for name in one}
    return {name: float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0)) for name, (a, b) in wide.items()}


def some(*fast: str) -> list[Any]:
    """All cases, those that are not named in the full tier: a program that is run step by step takes seconds."""
    assert set(fast) <= set(CASES)
    return [pytest.param(name, marks=[] if name in fast else pytest.mark.full) for name in CASES]


@pytest.mark.parametrize("keep", [pytest.param(False, marks=pytest.mark.full), True], ids=["computed again", "kept"])
@pytest.mark.parametrize("name", some("sampled patches", "a tree"))
def test_values_and_all_gradients_are_the_references(name: str, keep: bool):
    case = CASES[name]
    found = distance(run(functools.partial(by_program, keep=keep), case), run(by_reference, case))
    assert max(found.values()) < 2e-6, found  # sums in another order: f32 has 6e-8


@pytest.mark.full
@pytest.mark.parametrize("keep", [False, True], ids=["computed again", "kept"])
@pytest.mark.parametrize("name", ["sampled patches", "text"])
def test_in_bf16_it_errs_no_more_than_the_reference(name: str, keep: bool):
    case = CASES[name]
    exact = run(by_reference, case)
    ours = distance(run(functools.partial(by_program, keep=keep), case, jnp.bfloat16), exact)
    theirs = distance(run(by_reference, case, jnp.bfloat16), exact)
    assert {name: error for name, error in ours.items() if error > 1.5 * theirs[name]} == {}, (ours, theirs)


@pytest.mark.parametrize("name", some("sampled patches", "text", "one token"))
def test_what_cudnn_is_asked_for_is_the_references(name: str):
    """By JAX's plain implementation of the same call; cuDNN's own is measured where there is a GPU."""
    case = CASES[name]
    found = distance(run(functools.partial(by_cudnn, implementation="xla"), case), run(by_reference, case))
    assert max(found.values()) < 2e-6, found


@pytest.mark.full
@pytest.mark.parametrize("name", ["sampled patches", "more queries than are held at once"])
def test_nothing_is_left_unwritten_and_nothing_unwritten_is_read(name: str):
    case = CASES[name]
    poisoned = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise", detect_races=True)
    found = run(functools.partial(by_program, keep=True, interpret=poisoned), case)
    assert max(distance(found, run(by_reference, case)).values()) < 2e-6


@pytest.mark.full
@pytest.mark.tpu
@pytest.mark.parametrize("keep", [False, True], ids=["computed again", "kept"])
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_it_compiles_for_tpus(topology: str, keep: bool):
    place = SingleDeviceSharding(describe(parse_topology(topology))[0])
    large = {"heads": 16, "width": 64}
    for case in (
        Case(4, queries=276, keys=276, grid=(24, 24), patches=196, **large),
        Case(4, queries=276, keys=276, grid=(24, 24), patches=196, heads=16, width=80),  # huge
        Case(4, queries=276, keys=276, grid=(16, 16), patches=196, heads=4, width=64),  # tiny
        Case(4, queries=30, keys=276, shared=False, dense=False, **large),
        Case(4, queries=257, keys=257, causal=True, **large),
        Case(2, queries=1010, keys=1010, **large),  # 480 px and 110 tokens
    ):
        values, cells, mask, weights = jax.eval_shape(functools.partial(draw, case, jnp.bfloat16))

        def grads(values: Any, cells: Any, mask: Any, weights: Any, case: Case = case) -> Any:
            def loss(values: Any) -> jax.Array:
                out = by_program(case, values, cells, mask, keep=keep, interpret=False)
                return jnp.sum((out * weights).astype(jnp.float32))

            return jax.value_and_grad(loss)(values)

        given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (values, cells, mask, weights))
        text = jax.jit(grads).lower(*given).compile().as_text()
        assert text.count("attention_forward") and text.count("attention_backward"), case
        assert " gather(" not in text and " scatter(" not in text, case


@pytest.mark.full
@pytest.mark.tpu
@pytest.mark.parametrize(("remat", "again"), [("none", False), ("dots", False), ("full", True)])
def test_only_full_rematerialisation_computes_it_again(remat: str, again: bool):
    case = CASES["text"]

    def layer(x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        values, cells, mask, _ = draw(case)
        return x + jnp.sin(by_program(case, {**values, "q": x}, cells, mask, keep=remat != "full", interpret=False)), None

    if remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT[remat], prevent_cse=False)
    place = SingleDeviceSharding(describe(parse_topology("v5e:2x2"))[0])
    x = jax.ShapeDtypeStruct((case.rows, case.heads, case.queries, case.width), jnp.float32, sharding=place)
    loss = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(jax.lax.scan(layer, x, length=3)[0]))))
    text = loss.lower(x).compile().as_text()
    calls = [line for line in text.splitlines() if "custom-call(" in line and "tpu_custom_call" in line]
    assert sum("attention_backward" in line for line in calls) == 1
    assert sum("attention_forward" in line for line in calls) == 1 + again


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 7), (14, 14), (24, 24), (20, 30)])
def test_strips_hold_the_bias_between_all_cells(grid: tuple[int, int]):
    strips, cells = cut(*grid), np.arange(grid[0] * grid[1])
    table = jnp.asarray(np.random.default_rng(1).normal(size=((2 * SIDE - 1) ** 2 + 3, 2)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, cells.size, cells.size)), jnp.float32)
    made = jax.jit(lambda table: grid_strips(table, strips, side=SIDE))(table)
    assert made.shape == (2, *strips.shape) and strips.shape[1] % 128 == 0

    def look_up(made: jax.Array) -> jax.Array:
        return made[:, strips.strip(cells)[:, None], strips.place(cells)[None] + strips.shift(cells)[:, None]]

    np.testing.assert_array_equal(look_up(made), grid_relative(table, *grid, side=SIDE))
    if cells.size < 200:
        ours = jax.grad(lambda table: jnp.sum(look_up(grid_strips(table, strips, side=SIDE)) * weights))(table)
        theirs = jax.grad(lambda table: jnp.sum(grid_relative(table, *grid, side=SIDE) * weights))(table)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_patches_are_found_from_their_places():
    strips = cut(5, 7)
    cells = jnp.asarray([[34, 0, 7], [3, 2, 1]])
    columns, rows = find_patches(cells, strips)
    assert columns.shape == (2, 8, 2) and rows.shape == (2, 2, round_up(5 * strips.stride, 128))
    assert (columns[:, 3:] == -1).all() and rows[0, 0, :4].tolist() == [*strips.place(cells)[0].tolist(), -1]
    assert rows[1, 1, :4].tolist() == [-1, 2, 1, 0]
