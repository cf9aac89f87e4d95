"""What one kind of machine is: a file of `configs/hardware` each, the numbers with their sources.

Rates are what makers publish, not what a program gets. Nothing is guessed from a similar machine.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from ofa_jax.config.check import attention_problems
from ofa_jax.config.errors import ConfigError, nearest
from ofa_jax.config.load import load_run, override, read_config, split_config
from ofa_jax.config.render import leaves
from ofa_jax.config.schema import AnyRun, MeshConfig, RunConfig

_ROOT = Path(__file__).resolve().parents[2]
Run = TypeVar("Run", bound=AnyRun)


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One kind of accelerator and the hosts it comes with. Bytes a second; memory in bytes; a device of JAX is a chip."""

    name: str  # of its file, and on the command line: "v5p"
    title: str
    platform: Literal["tpu", "gpu", "cpu"]
    kinds: tuple[str, ...]  # the names that JAX gives it (`jax.Device.device_kind`), in full
    bf16_flops: float  # operations a second of dense products, 2 for a multiply-add
    memory_bytes: float  # of a chip, as published
    memory_rate: float
    link_rate: float  # to a neighbour (or, GPUs, into the switch), one way
    host_chips: int  # with what follows, 0 where hosts differ
    host_cores: int
    host_memory_bytes: float
    host_network_rate: float  # between hosts, one way
    torus: int = 0  # dimensions in which chips have two neighbours; 0: all chips of a host at one switch, hosts by network
    ring_multiple: int = 1  # a side of so many chips, or a multiple of them, closes to a ring
    shapes: tuple[str, ...] = ()  # of slices, as they can be had
    clock_hz: float = 0.0  # of a core, for cycles that the compiler expects; 0: not known
    usable_bytes: float = 0.0  # of a chip's memory, as the compiler lets a program have it; 0: `memory_bytes`
    compile_options: Mapping[str, object] = dataclasses.field(default_factory=dict)  # of the description of a topology, to libtpu
    layers: Literal["scan", "unroll", ""] = ""  # what suits its compiler; "": as the config says
    remat: Literal["none", "dots", "full", ""] = ""
    attention: Literal["reference", "cudnn", "pallas", ""] = ""  # where the config's attention can be made by it
    convolution: Literal["xla", "matmul", ""] = ""
    fsdp: int = 1  # chips that share the parameters, as far as the number of chips allows
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)  # field -> where its number is from

    @property
    def program_bytes(self) -> float:
        """Bytes of a chip that a program may take."""
        return self.usable_bytes or self.memory_bytes


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips in one arrangement, or several such slices joined by the hosts' network."""

    hardware: Hardware
    shape: tuple[int, ...]  # chips along each dimension of the torus; (n,) where there is none
    slices: int = 1

    @property
    def slice_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def chips(self) -> int:
        return self.slice_chips * self.slices

    @property
    def hosts(self) -> int:
        return self.slices * -(-self.slice_chips // (self.hardware.host_chips or 1))

    @property
    def text(self) -> str:
        name = f"{self.hardware.name}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{self.slices} x {name}"


def hardware_names() -> list[str]:
    """Returns the names of the files of `configs/hardware`."""
    return sorted(path.stem for path in (_ROOT / "configs" / "hardware").glob("*.py") if path.stem != "__init__")


def load_hardware(name: str) -> Hardware:
    """Returns `configs/hardware/<name>.py`'s value. Raises ConfigError where there is no such file."""
    names = hardware_names()
    if name not in names:
        raise ConfigError(f"hardware: found {name!r}, expected a file of configs/hardware; {nearest(name, names)}")
    if str(_ROOT) not in sys.path:
        sys.path.append(str(_ROOT))
    return importlib.import_module(f"configs.hardware.{name}").HARDWARE


def hardware_of(kind: str) -> Hardware | None:
    """Returns the machine whose devices JAX calls `kind` (`jax.Device.device_kind`) in full, or None where no file has it: nothing is
    taken from a similar name, and a part of a GPU (MIG) is not the GPU."""
    return next((found for name in hardware_names() if kind in (found := load_hardware(name)).kinds), None)


def suited(config: Run, hardware: Hardware, *, num_devices: int) -> Run:
    """Returns the config with what suits the hardware: its compiler's layers, remat and convolution, its attention where it makes what
    the config asks for, and a mesh where the config leaves it open.

    Nothing of it changes what is learned. Raises no error: whether the mesh divides what it splits is for `config.check`.
    """
    if isinstance(config, RunConfig):
        model = config.model
        model = dataclasses.replace(
            model,
            layers=hardware.layers or model.layers,
            remat=hardware.remat or model.remat,
            convolution=hardware.convolution or model.convolution,
        )
        config = dataclasses.replace(config, model=model)
        faster = dataclasses.replace(config, model=dataclasses.replace(model, attention=hardware.attention or model.attention))
        config = config if any(attention_problems(faster)) else faster
    if isinstance(config, RunConfig) and config.mesh == MeshConfig():  # a VQGAN's few parameters are whole everywhere
        config = dataclasses.replace(config, mesh=MeshConfig(fsdp=math.gcd(hardware.fsdp, num_devices)))
    return config


def load_suited(argv: Sequence[str], hardware: Hardware | None, *, kind: str, num_devices: int) -> tuple[AnyRun, str]:
    """Returns (the config that `argv` asks for, with what suits the hardware wherever `argv` says nothing else; what that was, in a line).

    hardware: of the devices, None where no file has it; kind: what JAX calls them. The line is "" where nothing was changed. Raises
    ConfigError as `load_run` does.
    """
    spec, overrides, _ = split_config(argv)
    plain, _ = load_run(argv)
    if spec is None or hardware is None:
        left = "model.layers, model.remat, model.convolution, model.attention and mesh"
        return plain, f"hardware: {kind} has no file in configs/hardware, so {left} are as the config says"
    config = override(suited(read_config(spec), hardware, num_devices=num_devices), overrides)
    was = leaves(plain)
    changes = [f"{name}={value}" for name, value in leaves(config).items() if was[name] != value]
    return config, f"hardware: {hardware.title} (configs/hardware/{hardware.name}.py): {' '.join(changes)}" if changes else ""


def parse_topology(text: str, *, slices: int = 1) -> Topology:
    """Returns the topology that `text`, "v5p:4x4x4" or "h100:8", names. Raises ConfigError for one that cannot be had."""
    name, _, shape_text = text.partition(":")
    hardware = load_hardware(name)
    example = hardware.shapes[-1] if hardware.shapes else "8"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape_text):
        raise ConfigError(f"topology: found {text!r}, expected {name}:SHAPE, as in {name}:{example}")
    shape = tuple(map(int, shape_text.split("x")))
    if slices < 1:
        raise ConfigError(f"slices: found {slices}, expected 1 or more")
    if hardware.torus == 0:
        if len(shape) != 1:
            raise ConfigError(
                f"topology: found {text!r}, expected a number of chips, as in {name}:8, because {hardware.title} has no torus"
            )
        if slices > 1:
            raise ConfigError(
                f"slices: found {slices} of {text}, expected 1: hosts of {hardware.title} are joined by their network already"
            )
    elif shape_text not in hardware.shapes:
        raise ConfigError(f"topology: found {text!r}, which {hardware.title} does not come in; {_near(shape, hardware.shapes)}")
    return Topology(hardware, shape, slices)


def _near(shape: Sequence[int], shapes: Sequence[str]) -> str:
    """Names the shapes whose number of chips is nearest."""
    wanted = math.prod(shape)
    by_size = sorted(shapes, key=lambda text: abs(math.log(math.prod(map(int, text.split("x"))) / wanted)))
    return f"nearest: {', '.join(by_size[:3])}"
