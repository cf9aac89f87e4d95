"""Set-up of every test process, before anything imports JAX: CPU only, eight fake devices, the repository on the path.

`OFA_TEST_DEVICES` changes the number of devices (`make test` runs the tests marked `one_device` a second time on one).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

DEVICES = os.environ.get("OFA_TEST_DEVICES", "8")

os.environ["JAX_PLATFORMS"] = "cpu"
_flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith("--xla_force_host_platform_device_count")]
os.environ["XLA_FLAGS"] = " ".join([*_flags, f"--xla_force_host_platform_device_count={DEVICES}"])

# A program that several tests or processes need is compiled once: half of the tests' time is compiling. It is kept for the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# `configs` and `launch` are folders beside the package, not installed with it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# A busy machine is no fault of the code: examples are judged by their results, not by their time.
settings.register_profile("house", deadline=None)
settings.load_profile("house")
