"""The training step compiled for devices that are not here, with shapes alone: its memory, its program, where its arrays lie."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ofa_jax.config.errors import UserError
from ofa_jax.config.hardware import Topology
from ofa_jax.config.parameters import stays
from ofa_jax.config.schema import AnyRun
from ofa_jax.parallel.mesh import batch_sharding, make_mesh
from ofa_jax.parallel.rules import key_path_parts
from ofa_jax.pods.hlo import Program, parse
from ofa_jax.pods.roofline import place_of
from ofa_jax.train.state import abstract_state, state_shardings, with_shardings
from ofa_jax.train.step import abstract_blocks, make_train_step

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Ran out of memory", "Out of memory", "out of memory")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"


class DoesNotFitError(UserError):
    """A step that takes more of a chip's memory than a program may. `largest` are allocations, as the compiler names them."""

    def __init__(self, said: str, largest: Sequence[str]):
        super().__init__(said)
        self.largest = tuple(largest)


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes of one chip."""

    params: int
    optimizer: int
    average: int
    other: int  # running statistics, the guard, counters
    batch: int
    peak: int  # all of it and the largest that the program needs beside it at once
    code: int  # of the program

    @property
    def working(self) -> int:
        """Activations, gradients and workspace, when they are largest."""
        return max(self.peak - self.params - self.optimizer - self.average - self.other - self.batch, 0)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled training step."""

    program: Program
    text: str  # as XLA prints it
    memory: StepMemory
    mesh: Mapping[str, int]  # sizes by axis, in the mesh's order
    places: np.ndarray  # int [devices in the mesh's order, 1 + dimensions] (`roofline.place_of`)
    lower_s: float
    compile_s: float


def compile_train_step(config: AnyRun, topology: Topology, devices: Sequence[jax.Device], *, num_tasks: int) -> CompiledStep:
    """Returns the config's own training step, compiled for `devices` (`pods.devices.describe`).

    Raises `UserError` where mesh and batch do not fit the devices, `DoesNotFitError` where the compiler finds no room for it.
    """
    try:
        mesh = make_mesh(config.mesh, devices=devices)
    except NotImplementedError as error:  # JAX's, for axes that are no product of sides of the torus
        sides = "x".join(map(str, topology.shape))
        raise UserError(
            f"mesh: found mesh.fsdp={config.mesh.fsdp} and mesh.tensor={config.mesh.tensor} on {topology.text}, expected products of sides "
            f"of {sides}, along whose links they can lie"
        ) from error
    began = time.monotonic()
    step: Any = make_train_step(config, mesh, num_tasks=num_tasks)
    state = with_shardings(abstract_state(config), state_shardings(config, mesh))
    blocks = abstract_blocks(config, batch_sharding(mesh))
    traced = step.trace(state, blocks)
    lowered = traced.lower()
    lower_s = time.monotonic() - began
    try:
        compiled, compile_s = compiled_within(lowered, topology)
    except DoesNotFitError as error:
        # Not all compilers list what is large; the trace does.
        raise DoesNotFitError(str(error), error.largest or largest_arrays(traced.jaxpr.jaxpr)) from error
    found = compiled.memory_analysis()
    sizes = StepMemory(
        params=_on_chip(state.params),
        optimizer=_on_chip(state.opt_state),
        average=_on_chip(state.ema),
        other=_on_chip((state.stats, state.guard)),
        batch=_on_chip(blocks),
        peak=peak_bytes(found, topology),
        code=int(found.generated_code_size_in_bytes),
    )
    places = np.array([place_of(device) for device in mesh.devices.flat])
    text = compiled.as_text()
    return CompiledStep(parse(text), text, sizes, dict(mesh.shape), places, lower_s, compile_s)


def compiled_within(lowered: Any, topology: Topology) -> tuple[Any, float]:
    """Returns (`lowered`, a `jax.stages.Lowered`, compiled; the seconds that took). Raises `DoesNotFitError` where there is no room."""
    began = time.monotonic()
    try:
        return lowered.compile(), time.monotonic() - began
    except jax.errors.JaxRuntimeError as error:
        if (said := does_not_fit(error, topology)) is None:
            raise
        raise said from error


def _on_chip(tree: Any) -> int:
    """Bytes of one chip's part of arrays that are described with their shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def peak_bytes(found: Any, topology: Topology) -> int:
    """Returns the compiler's own peak of a compiled program's `memory_analysis()`; CPUs give none: there the sum of all."""
    if topology.hardware.platform != "cpu":
        return int(found.peak_memory_in_bytes)
    return int(found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes - found.alias_size_in_bytes)


def does_not_fit(error: Exception, topology: Topology) -> DoesNotFitError | None:
    """Returns what an error of the compiler says of memory, or None where it is of something else."""
    text = str(error)
    if not any(words in text for words in OUT_OF_MEMORY):
        return None
    needed = re.search(rf"(?:Used|required[^()]*\(|temporaries \(){_SIZE}", text)
    said = f"found {_gb(needed)} needed, " if needed else ""
    return DoesNotFitError(
        f"topology {topology.text}: the step does not fit a chip: {said}expected at most "
        f"{topology.hardware.program_bytes / 1e9:.2f} GB; raise mesh.fsdp or optimizer.accumulate, or model.remat=full",
        _largest(text),
    )


def _gb(found: re.Match[str]) -> str:
    return f"{float(found[1]) * _UNITS[found[2]] / 1e9:.2f} GB"


def _largest(text: str) -> list[str]:
    """Returns the largest allocations of the compiler's message, one a line: size, shape and where it is from."""
    entries = []
    for part in re.split(r"\n\s*\d+\. Size: ", text)[1:]:
        fields = dict(re.findall(r"(Operator|Shape|Unpadded size|Extra memory due to padding|XLA label): (.*)", part))
        where = re.search(r'op_name="([^"]*)"', fields.get("Operator", "")) or re.search(r"(.*)", fields.get("XLA label", ""))
        entries.append(f"{part.split()[0]}  {fields.get('Shape', '').split('{')[0]}  {where[1][:160] if where else ''}".rstrip())
    return entries


_WRITTEN = ("scan", "dot_general", "conv_general_dilated", "all_gather")  # by what is in memory behind them, whatever is fused
_SHOWN, _FRAMES = 8, 3


def largest_arrays(jaxpr: Any) -> list[str]:
    """Returns the largest arrays that a trace writes on one device, one a line: size of all alike, their number, shape, where in our code.

    Products, gathers and what loops keep for the backward pass; whether they are there at the same time is for the compiler to say.
    """
    found: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    _collect(jaxpr, found)
    lines = sorted(found.items(), key=lambda item: -sum(item[1]))[:_SHOWN]
    return [f"{sum(sizes) / 1e9:.2f} GB  {len(sizes)} x {shape}  {where}" for (shape, where), sizes in lines]


def _collect(jaxpr: Any, found: dict[tuple[str, str], list[int]]) -> None:
    for equation in jaxpr.eqns:
        inner = [value for value in equation.params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
        for value in inner:
            _collect(getattr(value, "jaxpr", value), found)
        if equation.primitive.name in _WRITTEN:
            for out in equation.outvars:
                size = math.prod(out.aval.shape) * getattr(out.aval.dtype, "itemsize", 0)
                found[out.aval.str_short(short_dtypes=True), _where(equation)].append(size)


def _where(equation: Any) -> str:
    """The lines of ours that an equation is from, innermost first."""
    traceback = equation.source_info.traceback
    frames = [frame for frame in (traceback.frames if traceback else ()) if "/ofa_jax/" in frame.file_name]
    return " < ".join(f"{frame.file_name.rpartition('/ofa_jax/')[2]}:{frame.line_num}" for frame in frames[:_FRAMES])


def checkpoint_bytes(config: AnyRun) -> int:
    """Returns what a checkpoint takes on a disk, where it is not compressed: the state, or of it what is trained (`checkpoint.content`),
    where all that stays as it is is taken for left to another checkpoint."""
    light = config.checkpoint.content == "trained"

    def is_saved(path: tuple[str, ...]) -> bool:
        return not (light and path[0] in ("params", "ema") and stays(path[1:], config.optimizer))

    leaves = jax.tree_util.tree_flatten_with_path(abstract_state(config))[0]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for path, leaf in leaves if is_saved(key_path_parts(path)))
