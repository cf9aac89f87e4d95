"""What a run's config meets on the devices that are here."""

from __future__ import annotations

from pathlib import Path

import pytest

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.hardware import load_hardware
from ofa_jax.parallel.machine import load_here

CONFIG = f"--config={Path(__file__).resolve().parents[2]}/configs/ofa_tiny.py:debug"


def test_an_attention_of_other_devices_is_refused_in_one_sentence():
    argv = ["train", CONFIG, "--config.model.attention=pallas"]
    with pytest.raises(ConfigError, match="found pallas on devices of platform cpu, expected reference, or devices of platform tpu"):
        load_here(argv)
    load_here(argv, chip=load_hardware("v5e"), num_devices=8)
    load_here(argv[:2])
