"""How Google names what `configs/hardware` describes: the words that gcloud, GKE and XPK take for a kind of TPU."""

from __future__ import annotations

import dataclasses

from ofa_jax.clusters.flags import check_given
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.hardware import Topology, parse_topology

_RUNTIMES = "https://cloud.google.com/tpu/docs/runtimes"
_CONFIGURATIONS = "https://cloud.google.com/tpu/docs/supported-tpu-configurations"
_GKE = "https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus"
_XPK = "https://github.com/AI-Hypercomputer/xpk/blob/main/src/xpk/core/system_characteristics.py"


@dataclasses.dataclass(frozen=True)
class Generation:
    """The names of one kind of TPU."""

    prefix: str  # of the accelerator type
    counted: int  # what the type counts for each chip: 2 TensorCores, or 1 chip
    runtime: str  # the software version of its VMs, for JAX
    gke_accelerator: str  # the label of its nodes
    machine: str  # of nodes with 4 chips
    sources: tuple[str, ...]


GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu-4t", (_RUNTIMES, _CONFIGURATIONS, _GKE, _XPK)),
    "v5e": Generation(
        "v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t", (_RUNTIMES, _CONFIGURATIONS, _GKE, _XPK)
    ),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu-4t", (_RUNTIMES, _CONFIGURATIONS, _GKE, _XPK)),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard-4t", (_RUNTIMES, _CONFIGURATIONS, _GKE, _XPK)),
}


def generation_of(topology: Topology) -> Generation:
    """Returns the names of the topology's kind. Raises ConfigError for a kind that Google's programs have no known names for."""
    name = topology.hardware.name
    if name not in GENERATIONS:
        raise ConfigError(f"--topology: found {name}, expected one of {', '.join(GENERATIONS)}, whose names at Google are known here")
    return GENERATIONS[name]


def accelerator_type(topology: Topology) -> str:
    """Returns gcloud's and XPK's name of a slice, as v5litepod-16 or v5p-128; the latter counts TensorCores, two a chip."""
    generation = generation_of(topology)
    return f"{generation.prefix}-{topology.slice_chips * generation.counted}"


def shape_text(topology: Topology) -> str:
    """Returns the shape of a slice, as 4x4x4."""
    return "x".join(map(str, topology.shape))


def tpu_topology(text: str, *, slices: int) -> Topology:
    """Returns the TPU topology of a flag. Raises ConfigError for GPUs and for shapes that cannot be had."""
    topology = parse_topology(check_given(text, "topology", "v5p:4x4x4"), slices=slices)
    if topology.hardware.platform != "tpu":
        raise ConfigError(
            f"--topology: found {text}, which is {topology.hardware.title}, expected TPUs, as in v5p:4x4x4; "
            "launch/pods/slurm.py starts runs on GPUs"
        )
    return topology
