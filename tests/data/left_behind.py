"""What programs that have ended left in shared memory."""

from __future__ import annotations

import os
from pathlib import Path


def shared_memory() -> set[str]:
    """Names of the blocks and semaphores of multiprocessing that exist now."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "sem."))}


def orphans(before: set[str]) -> set[str]:
    """Names that are new since `before` and that no living process uses: other tests may run beside."""
    new = shared_memory() - before
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            used = maps.read_text()
        except OSError:
            continue  # it ended meanwhile
        new = {name for name in new if f"/dev/shm/{name}" not in used}
    return new & shared_memory()
