"""libtpu's own prices, read from the text of a program and from a program that it compiles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from ofa_jax.config.hardware import parse_topology
from ofa_jax.pods.cycles import by, expected, total
from ofa_jax.pods.devices import describe
from ofa_jax.pods.hlo import parse

TEXT = """HloModule jit_f
%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}
%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %y = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="encoder/y"}, backend_config={"estimated_cycles":"70"}
  %z = f32[8]{0} gather(%y, %i), metadata={op_name="encoder/z"}
  %all = f32[8]{0} all-reduce(%z), replica_groups={}, to_apply=%fused, backend_config={"estimated_cycles":"9"}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %all)
}
%cond (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[], f32[8]{0}) parameter(0)
  ROOT %k = pred[] constant(true)
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]{0}) tuple(%zero, %a)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %b = f32[8]{0} get-tuple-element(%loop), index=1
  ROOT %out = f32[8]{0} copy(%b), metadata={op_name="decoder/out"}, backend_config={"estimated_cycles":"30"}
}
"""


def test_prices_count_the_turns_of_loops_and_tell_what_has_none():
    found = expected(parse(TEXT))
    assert [(one.name, one.cycles, one.turns) for one in found] == [("z", None, 5.0), ("y", 350.0, 5.0), ("out", 30.0, 1.0)]
    assert total(found) == 380.0
    assert by(found, lambda one: one.scope.partition("/")[0]) == {"encoder": 350.0, "decoder": 30.0}


@pytest.mark.full
@pytest.mark.tpu
@pytest.mark.parametrize(("topology", "clock"), [("v4:2x2x1", 1.05e9), ("v5e:2x2", 1.5e9), ("v5p:2x2x1", 1.75e9)])
def test_a_large_product_is_expected_near_the_published_rate(topology: str, clock: float):
    found = parse_topology(topology)
    a = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=SingleDeviceSharding(describe(found)[0]))
    seconds = total(expected(parse(jax.jit(lambda a, b: a @ b).lower(a, a).compile().as_text()))) / clock
    assert 0.8 < 2 * 8192**3 / seconds / found.hardware.bf16_flops < 1.0
