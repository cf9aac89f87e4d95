"""Programs that XLA compiled here, read back: operations, turns of loops, collectives and what they go over."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ofa_jax.pods.collectives import SLICES, by_kind, collectives
from ofa_jax.pods.costs import costs
from ofa_jax.pods.hlo import Array, arrays, parse

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:8])


def program_of(function, *shapes, shardings=None, out=None):
    specs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    options = {} if shardings is None else {"in_shardings": shardings, "out_shardings": out}
    return parse(jax.jit(function, **options).lower(*specs).compile().as_text())


def operations(program) -> float:
    return sum(cost.operations * cost.turns for cost in costs(program))


def test_shapes_with_layouts_tiles_and_memories_are_read():
    text = "(bf16[8,64,64,2]{0,3,2,1:T(2,128)(2,1)S(1)}, /*index=1*/f32[], u32[4]{0:S(4)}, pred[3]{0})"
    assert list(arrays(text)) == [Array("bf16", (8, 64, 64, 2), 1), Array("f32", (), 0), Array("u32", (4,), 4), Array("pred", (3,), 0)]
    assert [array.num_bytes for array in arrays(text)] == [8 * 64 * 64 * 2 * 2, 4, 16, 3]


def test_products_are_counted_once_a_multiply_add_and_once_a_turn():
    def scanned(x, ws):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    assert operations(program_of(lambda a, b: a @ b, (32, 64), (64, 16))) == 2 * 32 * 64 * 16
    assert operations(program_of(scanned, (32, 64), (7, 64, 64))) == 7 * 2 * 32 * 64 * 64
    assert operations(program_of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (5, 8, 16), (5, 16, 4))) == 2 * 5 * 8 * 16 * 4


def test_convolutions_count_what_meets_the_picture():
    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))

    found = operations(program_of(convolve, (3, 8, 8, 4), (3, 3, 4, 6)))
    meets = sum(0 <= o * 2 + k - 1 < 8 for o in range(4) for k in range(3))  # of one side
    assert found == 2 * 3 * meets**2 * 4 * 6


def test_bytes_of_a_scan_are_those_of_its_slices():
    def total(x, ws):
        return lax.scan(lambda x, w: (x + w, None), x, ws)[0]

    program = program_of(total, (256,), (100, 256))
    moved = sum(cost.num_bytes * cost.turns for cost in costs(program))
    assert 100 * 3 * 1024 * 0.5 <= moved <= 100 * 8 * 1024  # each turn reads and writes kilobytes, never the 100 of all


# As TPUs write a layer of a stack: its product slices the stack in a fusion of its own, and updates a part of another stack.
NESTED = """HloModule nested

%sliced (stack.1: f32[100,64,64], place.1: s32[]) -> f32[64,64] {
  %stack.1 = f32[100,64,64]{2,1,0} parameter(0)
  %place.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %slice.1 = f32[1,64,64]{2,1,0} dynamic-slice(%stack.1, %place.1, %zero.1, %zero.1), dynamic_slice_sizes={1,64,64}
  ROOT %whole.1 = f32[64,64]{1,0} bitcast(%slice.1)
}

%product (stack.2: f32[100,64,64], place.2: s32[], x.2: f32[8,64], kept.2: f32[100,8,64]) -> f32[100,8,64] {
  %stack.2 = f32[100,64,64]{2,1,0} parameter(0)
  %place.2 = s32[] parameter(1)
  %x.2 = f32[8,64]{1,0} parameter(2)
  %kept.2 = f32[100,8,64]{2,1,0} parameter(3)
  %layer.2 = f32[64,64]{1,0} fusion(%stack.2, %place.2), kind=kLoop, calls=%sliced
  %dot.2 = f32[8,64]{1,0} dot(%x.2, %layer.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %part.2 = f32[1,8,64]{2,1,0} bitcast(%dot.2)
  %zero.2 = s32[] constant(0)
  ROOT %update.2 = f32[100,8,64]{2,1,0} dynamic-update-slice(%kept.2, %part.2, %place.2, %zero.2, %zero.2)
}

ENTRY %main (stack: f32[100,64,64], place: s32[], x: f32[8,64], kept: f32[100,8,64]) -> f32[100,8,64] {
  %stack = f32[100,64,64]{2,1,0} parameter(0)
  %place = s32[] parameter(1)
  %x = f32[8,64]{1,0} parameter(2)
  %kept = f32[100,8,64]{2,1,0} parameter(3)
  ROOT %out = f32[100,8,64]{2,1,0} fusion(%stack, %place, %x, %kept), kind=kOutput, calls=%product
}
"""


def test_a_fusion_inside_of_a_fusion_reads_its_slice_alone():
    [cost] = costs(parse(NESTED))
    layer, rows, place = 4 * 64 * 64, 4 * 8 * 64, 4
    assert cost.operations == 2 * 8 * 64 * 64
    assert cost.num_bytes == pytest.approx(layer + 2 * rows, abs=2 * place)  # read: the layer and x; written: the part


def test_collectives_have_axes_bytes_and_turns(mesh):
    def place(*spec):
        return NamedSharding(mesh, PartitionSpec(*spec))

    def step(x, w):
        return lax.with_sharding_constraint(x @ w, place(("data", "fsdp"))).sum(0)

    program = program_of(step, (64, 32), (32, 128), shardings=(place(("data", "fsdp")), place(None, "fsdp")), out=place())
    found = {(line.kind, line.axes): line for line in by_kind(collectives(program, MESH))}
    assert found[("all-gather", ("fsdp",))].total_bytes == 32 * 128 * 4
    assert found[("all-reduce", ("data", "fsdp"))].total_bytes == 128 * 4
    assert set(found) == {("all-gather", ("fsdp",)), ("all-reduce", ("data", "fsdp"))}


# As libtpu writes a sum over the copies of two slices: in the slice, by the hosts a chip's part, and gathered again.
SLICED = """HloModule sliced

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %inside = f32[8,128]{1,0} all-reduce(%x), replica_groups={{0,2},{1,3}}, to_apply=%add
  %token = token[] after-all()
  %part = f32[4,128]{1,0} slice(%inside), slice={[0:4], [0:128]}
  %send.1 = (f32[4,128]{1,0}, u32[]{:S(2)}, token[]) send(%part, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent.1 = token[] send-done(%send.1), channel_id=2, is_host_transfer=true
  %recv.1 = (f32[4,128]{1,0}, u32[]{:S(2)}, token[]) recv(%token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %received.1 = (f32[4,128]{1,0}, token[]) recv-done(%recv.1), channel_id=1, is_host_transfer=true
  %all.1 = f32[4,128]{1,0} get-tuple-element(%received.1), index=0
  ROOT %whole = f32[8,128]{1,0} all-gather(%all.1), replica_groups={{0,2},{1,3}}, dimensions={0}
}
"""  # noqa: E501


def test_slices_exchange_what_their_chips_hand_to_hosts():
    found = {(line.kind, line.axes): line for line in by_kind(collectives(parse(SLICED), {"data": 4, "fsdp": 2, "tensor": 1}, slices=2))}
    assert set(found) == {("all-reduce", ("data",)), ("all-reduce", (SLICES,)), ("all-gather", ("data",))}
    assert found["all-reduce", (SLICES,)].total_bytes == 4 * 128 * 4 and found["all-gather", ("data",)].total_bytes == 8 * 128 * 4


TILES = """HloModule jit_step
%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}
%all-reduce-scatter (input_0: f32[48,8,128], input_1: f32[32,8,128]) -> f32[64,8,128] {
  %input_0 = f32[48,8,128]{2,1,0:T(8,128)} parameter(0)
  %zero = f32[] constant(0)
  %more = f32[64,8,128]{2,1,0:T(8,128)} pad(%input_0, %zero), padding=0_16x0_0x0_0
  %input_1 = f32[32,8,128]{2,1,0:T(8,128)} parameter(1)
  %both = (f32[64,8,128], f32[32,8,128]) all-reduce(%more, %input_1), replica_groups={{0,2},{1,3}}, to_apply=%sum
  ROOT %first = f32[64,8,128]{2,1,0:T(8,128)} get-tuple-element(%both), index=0
}
ENTRY %main (a: f32[1026,16], b: f32[256,128]) -> f32[64,8,128] {
  %a = f32[1026,16]{0,1:T(8,128)} parameter(0)
  %wide = f32[1152,16]{0,1:T(8,128)} custom-call(%a), custom_call_target="ZeroCrop"
  %tiles = f32[48,8,128]{2,1,0:T(8,128)} bitcast(%wide)
  %b = f32[256,128]{1,0:T(8,128)} parameter(1)
  %whole = f32[32,8,128]{2,1,0:T(8,128)} bitcast(%b)
  ROOT %f = f32[64,8,128]{2,1,0:T(8,128)} fusion(%tiles, %whole), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_sums_of_several_slices_count_no_tile_that_only_pads():
    [one] = collectives(parse(TILES), {"data": 4, "fsdp": 2}, slices=2)
    assert (one.kind, one.axes, one.num_bytes) == ("all-reduce", ("data",), 4 * (1026 * 16 + 256 * 128))


def test_a_collective_in_a_loop_counts_every_turn(mesh):
    def place(*spec):
        return NamedSharding(mesh, PartitionSpec(*spec))

    def body(x, w):
        return jnp.tanh(lax.with_sharding_constraint(x @ lax.with_sharding_constraint(w, place()), place("data"))), None

    def step(x, ws):
        return lax.scan(body, x, ws)[0]

    program = program_of(step, (64, 32), (5, 32, 32), shardings=(place("data"), place(None, None, "fsdp")), out=place("data"))
    gathers = [one for one in collectives(program, MESH) if one.kind == "all-gather"]
    assert sum(one.total_bytes for one in gathers) == 5 * 32 * 32 * 4 and all(one.axes == ("fsdp",) for one in gathers)
