"""A run's config on the devices that are here: what the command line says, and what suits them where it says nothing."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from ofa_jax.config.check import check
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.hardware import Hardware, hardware_of, load_suited
from ofa_jax.config.schema import AnyRun, RunConfig
from ofa_jax.parallel import hosts


def load_here(argv: Sequence[str], *, chip: Hardware | None = None, num_devices: int = 0, checked: bool = True) -> AnyRun:
    """Returns the config that `argv` asks for as `config.hardware.load_suited` does for the devices of all hosts, after `hosts.start`;
    the first host prints what was taken from the hardware's file.

    chip and num_devices: of others than those that are here. checked: raises ConfigError where it does not fit so many devices.
    """
    kind = jax.devices()[0].device_kind
    config, said = load_suited(argv, chip or hardware_of(kind), kind=kind, num_devices=num_devices or jax.device_count())
    if said and hosts.is_first():
        print(said, flush=True)
    if checked:
        check(config, num_devices=num_devices or jax.device_count())
        check_attention(config, chip.platform if chip else jax.devices()[0].platform)
    return config


def check_attention(config: AnyRun, platform: str) -> None:
    """Raises ConfigError for an attention that is made for other devices than those of JAX's `platform`."""
    if not isinstance(config, RunConfig):
        return
    wanted = {"pallas": "tpu", "cudnn": "gpu"}.get(config.model.attention, platform)
    if wanted != platform:
        found = f"model.attention: found {config.model.attention} on devices of platform {platform}"
        raise ConfigError(f"{found}, expected reference, or devices of platform {wanted}")
