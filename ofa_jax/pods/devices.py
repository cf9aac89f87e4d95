"""Devices that are not here: what a TPU topology's chips are to JAX's compiler, which needs libtpu and no chip."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import jax

from ofa_jax.config.errors import UserError
from ofa_jax.config.hardware import Topology

# Where libtpu looks for a machine's metadata server, it waits minutes for one that is not there; and two programs may compile at a time.
_QUIET = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "", "TPU_WORKER_HOSTNAMES": ""}


def describe(topology: Topology) -> Sequence[jax.Device]:
    """Returns the topology's devices, slice after slice, for compiling alone; CPUs are those of this process.

    Raises `UserError` where libtpu is not installed or does not know the topology, for GPUs, which cannot be described without one, and
    for more CPU devices than there are.
    """
    hardware = topology.hardware
    if hardware.platform == "cpu":
        found = jax.devices("cpu")
        if len(found) < topology.chips:
            flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.chips}"
            raise UserError(f"topology {topology.text}: found {len(found)} CPU device(s), expected {topology.chips}; set {flag}")
        return found[: topology.chips]
    if hardware.platform != "tpu":
        raise UserError(
            f"topology {topology.text}: JAX compiles for {hardware.title} on one alone, expected a TPU or cpu; run launch/doctor.py "
            f"--compile on such a machine"
        )
    from jax.experimental import topologies

    options: dict[str, object] = dict(hardware.compile_options)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = topology.text.rpartition(" ")[2]
    with _environment(_QUIET):
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
        except (RuntimeError, NotImplementedError, ValueError) as error:
            said = " ".join(str(error).split())
            if "not installed" in said or "libtpu" in said:
                raise UserError(
                    f"topology {topology.text}: found no libtpu, expected it; `make tpu-env` installs it in an environment of its own"
                ) from error
            raise UserError(f"topology {topology.text}: libtpu refuses it: {said[:200]}") from error


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables that are not set, for libtpu to read as it loads."""
    added = {name: value for name, value in values.items() if value and name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
