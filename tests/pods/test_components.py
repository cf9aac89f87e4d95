"""Which part of the model a compiled instruction belongs to, and the table of parts."""

from __future__ import annotations

import pytest

from ofa_jax.config.hardware import load_hardware
from ofa_jax.models.floors import Floor
from ofa_jax.pods.components import component_of, components, lines
from ofa_jax.pods.costs import costs
from ofa_jax.pods.cycles import expected
from ofa_jax.pods.hlo import parse

TEXT = """HloModule jit_step
%product (p: f32[8,8], q: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %q = f32[8,8]{1,0} parameter(1)
  %d = f32[8,8]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/jvp(encoder)/ffn/dot"}
  ROOT %n = f32[8,8]{1,0} negate(%d), metadata={op_name="jit(step)/jvp(encoder)/attention/neg"}
}
ENTRY %main (a: f32[8,8], b: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %y = f32[8,8]{1,0} fusion(%a, %b), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"1750"}
  %c = f32[8,8]{1,0} copy(%y)
  %m = f32[8,8]{1,0} multiply(%c, %b), metadata={op_name="jit(step)/optimizer/mul"}
  ROOT %e = f32[8,8]{1,0} negate(%m), metadata={op_name="jit(step)/convert"}
}
"""


@pytest.mark.parametrize(
    ("scope", "component"),
    [
        ("jit(step)/jvp(encoder)/while/body/closed_call/attention/bsd,df->bsf/dot_general", "encoder/attention"),
        ("jit(step)/transpose(jvp(decoder))/while/body/checkpoint/cross_attention/mul", "decoder/cross_attention"),
        ("jit(step)/transpose(jvp(logits))/while/body/take_along_axis", "logits"),
        ("jit(step)/jvp(encoder)/concatenate", "encoder"),
        ("jit(step)/optimizer/sqrt", "optimizer"),
        ("jit(step)/jvp()/attention/slice", "other"),
        ("", "other"),
    ],
)
def test_scopes_name_parts(scope: str, component: str):
    assert component_of(scope) == component


def test_parts_are_summed_beside_their_floors():
    program, hardware = parse(TEXT), load_hardware("v5p")
    floors = {"encoder/ffn": Floor(1024.0, 512.0), "optimizer": Floor(0.0, 256.0)}
    found = components(costs(program), expected(program), floors, hardware)
    assert [one.name for one in found] == ["encoder/ffn", "optimizer", "other"]
    ffn, optimizer, other = found
    # The fusion is its product's, and so is the copy of its result, which has no name of its own.
    assert ffn.operations == 1024.0 and ffn.num_bytes == 3 * 256 + 2 * 256 and ffn.expected_s == pytest.approx(1e-6)
    assert optimizer.num_bytes == 3 * 256 and optimizer.floor_s == 256 / hardware.memory_rate and other.num_bytes == 2 * 256
    head, *rows, total = lines(found)
    assert len(rows) == 3 and total.split()[0] == "all" and len(head.split()) == len(rows[0].split()) - 1
