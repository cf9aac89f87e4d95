"""Large pages of memory for programs whose steps run on the CPU.

XLA's CPU client takes a step's memory from the C library anew at every step, and the kernel zeroes it page by page: a step of OFA-base on
texts took half a million faults of 4 KiB, a tenth of its time (docs/performance.md). glibc 2.35 and later ask the kernel for pages of
2 MiB where its tunable `glibc.malloc.hugetlb` is 1, which it reads once, when a program starts.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_with_huge_pages() -> None:
    """Starts this program again, in the same process and with the same arguments, with the tunable in its environment, if steps run on
    the CPU and the kernel gives large pages to those who ask. Returns where that is so already, or not to be had.

    To be called first: nothing of what the program did before is kept. GLIBC_TUNABLES=glibc.malloc.hugetlb=0 keeps it from it.
    """
    if (environment := wanted(os.environ)) is not None and steps_run_on_cpu(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def wanted(environ: Mapping[str, str]) -> dict[str, str] | None:
    """Returns `environ` with the tunable, None where it is set, or would change nothing."""
    tunables = environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in tunables or not _has_tunable() or not _MODES.exists() or "[madvise]" not in _MODES.read_text(encoding="ascii"):
        return None
    return {**environ, "GLIBC_TUNABLES": f"{tunables}:{TUNABLE}=1".lstrip(":")}


def _has_tunable() -> bool:
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names:  # another C library, or another system
        return False
    version = (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ").split(".")
    return len(version) > 1 and tuple(map(int, version[:2])) >= (2, 35)


def steps_run_on_cpu(environ: Mapping[str, str]) -> bool:
    """Returns whether JAX has nothing but the CPU: by `JAX_PLATFORMS`, else because no plugin for anything else is installed. JAX itself
    is not asked, which would take a second and start what cannot be started twice."""
    if platforms := environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    installed = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    return not installed and not importlib.metadata.entry_points(group="jax_plugins")
