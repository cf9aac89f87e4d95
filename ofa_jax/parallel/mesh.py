"""The device mesh: three named axes, `data`, `fsdp` and `tensor`, in that order.

`data` copies the parameters and splits the batch, `fsdp` splits both, `tensor` splits parameters and the activations made of them.
All axes are of type Auto: the compiler places the collectives, sharding annotations only say where arrays start and end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import BlockConfig, MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # mesh axes over which the rows of a batch are split


def mesh_shape(mesh: MeshConfig, *, num_devices: int) -> tuple[int, int, int]:
    """Returns the sizes of (data, fsdp, tensor) with -1 filled in.

    Raises `UserError` when a size is not positive, when more than one is -1, or when the product is not `num_devices`.
    """
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            raise UserError(f"mesh.{axis}: found {size}, expected a positive size, or -1 for what is left")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"mesh.{' and mesh.'.join(free)}: found -1 in both, expected at most one -1")
    fixed = 1
    for size in sizes.values():
        fixed *= size if size != -1 else 1
    text = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    if free:
        if num_devices % fixed:
            raise UserError(f"mesh: found {text}, expected sizes whose product {fixed} divides the {num_devices} devices")
        sizes[free[0]] = num_devices // fixed
    elif fixed != num_devices:
        raise UserError(f"mesh: found {text}, a product of {fixed}, expected the number of devices, {num_devices}")
    return sizes["data"], sizes["fsdp"], sizes["tensor"]


def make_mesh(mesh: MeshConfig, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all devices of all processes), along the links of a TPU's torus; slices, which only their
    hosts' network joins, are the outer part of `data`. Raises `UserError` as `mesh_shape` does, and where slices do not divide `data`."""
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(mesh, num_devices=len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if shape[0] % slices:
            raise UserError(f"mesh.data: found {shape[0]}, expected a multiple of the {slices} slices, which only `data` crosses")
        inner, outer = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of every batch array: the leading axis over data and fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def on_first_device(tree: Any) -> Any:
    """Returns the shapes and dtypes of a tree's leaves, to be restored whole on the first device of every process: on all devices of a host
    there would be as many copies."""
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.asarray([firsts[index] for index in sorted(firsts)]), ("process",))
    place = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def num_batch_shards(mesh: Mesh) -> int:
    """Returns into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(blocks: Sequence[BlockConfig], mesh: Mesh) -> None:
    """Raises `UserError` when the rows of a block cannot be split evenly over the mesh's data and fsdp axes."""
    shards = num_batch_shards(mesh)
    for block in blocks:
        if block.rows % shards:
            below, above = block.rows // shards * shards, -(-block.rows // shards) * shards
            legal = f"{above}" if below == 0 else f"{below} or {above}"
            raise UserError(
                f"data.blocks.{block.name}.rows: found {block.rows}, expected a multiple of "
                f"mesh.data * mesh.fsdp = {shards}; nearest: {legal}"
            )
