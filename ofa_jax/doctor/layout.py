"""Whether the mesh divides what it splits, and which meshes would."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from jax.sharding import AbstractMesh, AxisType

from ofa_jax.config.check import problems
from ofa_jax.config.findings import resolve_mesh
from ofa_jax.config.schema import AnyRun, MeshConfig, RunConfig
from ofa_jax.doctor.report import Finding
from ofa_jax.parallel.mesh import AXES, mesh_shape
from ofa_jax.train.state import TrainState, abstract_state, state_shardings

_SHOWN = 4  # faults, and legal meshes, that are named
_FARTHEST = 2  # times the devices there are, up to which a legal number of devices is looked for


def abstract_mesh(config: AnyRun, num_devices: int) -> AbstractMesh:
    """Returns the config's mesh without its devices, which need not be here. Raises `UserError` as `mesh_shape` does."""
    shape = mesh_shape(config.mesh, num_devices=num_devices)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def placed_state(config: AnyRun, num_devices: int) -> tuple[TrainState, TrainState]:
    """Returns the state's shapes and its shardings over `num_devices`. Raises `UserError` where a parameter cannot be split."""
    return abstract_state(config), state_shardings(config, abstract_mesh(config, num_devices))  # type: ignore[arg-type]


def check_layout(config: AnyRun, num_devices: int) -> list[Finding]:
    """Returns every way in which rows, heads, widths and vocabulary do not divide by the mesh over `num_devices`, with the nearest meshes
    that fit; one finding that they do where there is none. `config` is without faults but for the number of devices."""
    faults = list(problems(config, num_devices))
    if not faults:
        placed_state(config, num_devices)  # every parameter, by the table of rules
        sizes = resolve_mesh(config.mesh, num_devices)
        rows = sum(block.rows for block in config.data.row_blocks)
        said = f"{num_devices} device(s) as {_named(sizes)} share {rows:,} rows"
        if isinstance(config, RunConfig):
            said += f", {config.model.num_heads} heads, {config.vocab.padded_size:,} vocabulary rows"
        return [Finding("mesh", "ok", said, numbers={"devices": num_devices, **sizes})]
    legal = sorted(legal_meshes(config, num_devices), key=lambda sizes: _distance(sizes, config.mesh))
    if legal:
        advice = "what fits: " + "; ".join(_flags(sizes) for sizes in legal[:_SHOWN])
    else:
        counts = legal_counts(config, num_devices)
        advice = f"no mesh of {num_devices} devices fits; with the batch as it is, {' or '.join(map(str, counts)) or 'no other'} devices do"
    shown = faults[:_SHOWN]
    if len(faults) > _SHOWN:
        advice = f"{len(faults) - _SHOWN} more faults alike; {advice}"
    return [Finding("mesh", "FAIL", fault, advice=advice if fault is shown[-1] else "") for fault in shown]


def batch_shards(config: AnyRun, num_devices: int) -> int:
    """Returns into how many parts the rows of a batch are split over `num_devices`."""
    sizes = resolve_mesh(config.mesh, num_devices)
    return sizes["data"] * sizes["fsdp"]


def legal_meshes(config: AnyRun, num_devices: int) -> Iterator[dict[str, int]]:
    """Yields the sizes of every mesh over `num_devices` that divides what it splits, by axis."""
    for tensor in _divisors(num_devices):
        for fsdp in _divisors(num_devices // tensor):
            sizes = {"data": num_devices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}
            if next(problems(dataclasses.replace(config, mesh=MeshConfig(**sizes)), num_devices), None) is None:
                yield sizes


def legal_counts(config: AnyRun, num_devices: int) -> list[int]:
    """Returns the nearest numbers of devices, one below and one above `num_devices`, for which some mesh is legal; none beyond twice as
    many."""
    below = next((n for n in range(num_devices - 1, 0, -1) if any(True for _ in legal_meshes(config, n))), None)
    above = next((n for n in range(num_devices + 1, _FARTHEST * num_devices + 1) if any(True for _ in legal_meshes(config, n))), None)
    return [n for n in (below, above) if n is not None]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _distance(sizes: dict[str, int], wanted: MeshConfig) -> tuple[float, int]:
    """Nearest first: as few factors away from what the config says as can be; axes of -1 are free."""
    asked = {axis: getattr(wanted, axis) for axis in AXES}
    return sum(abs(math.log(sizes[axis] / size)) for axis, size in asked.items() if size > 0), sizes["tensor"]


def _named(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


def _flags(sizes: dict[str, int]) -> str:
    return " ".join(f"--config.mesh.{axis}={size}" for axis, size in sizes.items())
