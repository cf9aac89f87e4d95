"""Set-up of every test process, before anything imports JAX: CPU only, eight fake devices, the repository on the path.

`OFA_TEST_DEVICES` changes the number of devices (`make test` runs the tests marked `one_device` a second time on one).
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings

DEVICES = os.environ.get("OFA_TEST_DEVICES", "8")

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs of tests run a few times: unoptimised and for narrow vectors they compile in half the time, as they do without the fusion
# emitters, for which jaxlib 0.10 has a flag and 0.11 one of the backend's own options; their matrix products are the same library's.
_quick = ["--xla_backend_optimization_level=0"]
if platform.machine() == "x86_64":
    _quick.append("--xla_cpu_max_isa=SSE4_2")
if version("jaxlib").startswith("0.10."):
    _quick.append("--xla_cpu_use_fusion_emitters=false")
elif version("jaxlib").startswith("0.11."):
    _quick.append("--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters")
_given = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith("--xla_force_host_platform_device_count")]
_flags = [flag for flag in _quick if flag.split("=")[0] not in {one.split("=")[0] for one in _given}]
os.environ["XLA_FLAGS"] = " ".join([*_given, *_flags, f"--xla_force_host_platform_device_count={DEVICES}"])

# A program that several tests or processes need is compiled once: half of the tests' time is compiling. It is kept for the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# `configs` and `launch` are folders beside the package, not installed with it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# A busy machine is no fault of the code: examples are judged by their results, not by their time.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

_LONGEST_FIRST = ("e2e", "train", "models", "eval", "convert", "decode")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the folders of long tests: one that comes last is waited for by idle workers."""
    ranks = {name: rank for rank, name in enumerate(_LONGEST_FIRST)}
    root = Path(__file__).parent
    items.sort(key=lambda item: ranks.get(item.path.relative_to(root).parts[0], len(ranks)))
