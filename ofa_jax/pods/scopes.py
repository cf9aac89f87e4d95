"""Under which names the instructions of a compiled program were traced, those that the compiler made included."""

from __future__ import annotations

from collections.abc import Iterator

from ofa_jax.pods.hlo import Computation, Instruction, Program

_FAR = 6  # instructions that are looked through for a name


class Scopes:
    """The scopes of a program's instructions."""

    def __init__(self, program: Program):
        self.program = program

    def of(self, computation: Computation, one: Instruction) -> str:
        """Returns an instruction's scope: of a fusion, that of its product where it has one; of what the compiler made (copies, changes of
        layout), that of what it holds, of what made its operand or, last, of what reads it. "" where nothing near has one."""
        return self._of(computation, one, _FAR)

    def _of(self, computation: Computation, one: Instruction, far: int) -> str:
        if found := next((product.scope for product in self._products(one)), one.scope):
            return found
        if one.opcode == "fusion":
            inside = self.program.computations[one.called()["calls"]].instructions.values()
            if found := next((inner.scope for inner in reversed(inside) if inner.scope), ""):
                return found
        if not far:
            return ""
        operands = [computation.instructions[name] for name in one.operands]
        found = next((found for operand in operands if (found := self._of(computation, operand, far - 1))), "")
        return found or next((user.scope for user in computation.users.get(one.name, ()) if user.scope), "")

    def _products(self, one: Instruction) -> Iterator[Instruction]:
        for called in one.called().values() if one.opcode == "fusion" else ():
            for inner in self.program.computations[called].instructions.values():
                if inner.opcode in ("dot", "convolution") and inner.scope:
                    yield inner
                elif inner.opcode == "fusion":
                    yield from self._products(inner)
