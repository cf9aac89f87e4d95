"""One of two processes that compute together what test_sizes_agree.py computes in one: `sizes_program.py FOLDER SIZE`.

The first writes `<norm>_first.npz` and `<norm>_last.npz` of both batch norms, and the loss in float32 as `loss_f32.npy`.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from sizes_case import LATER, NORMS, PROCESSES, STEPS, loss_of, shrunk, start_of, train

from ofa_jax.parallel import hosts
from ofa_jax.parallel.mesh import make_mesh


def main(folder: str, size: str) -> int:
    """Does what the module says."""
    hosts.start()
    mesh = make_mesh(PROCESSES)
    for norm in NORMS:
        began = time.monotonic()
        jax.config.update("jax_enable_x64", True)
        config = dataclasses.replace(shrunk(size, norm=norm, precision="f64"), mesh=PROCESSES)
        first, last = train(config, mesh, start_of(config), steps=STEPS if LATER.get(size) == norm else 1)
        if hosts.is_first():
            np.savez(Path(folder) / f"{norm}_first.npz", **first)
            np.savez(Path(folder) / f"{norm}_last.npz", **last)
        print(f"{size}, {norm}: {time.monotonic() - began:.0f} s", flush=True)
    jax.config.update("jax_enable_x64", False)
    config = dataclasses.replace(shrunk(size, norm=NORMS[0], precision="f32"), mesh=PROCESSES)
    loss = loss_of(config, mesh, start_of(config))
    if hosts.is_first():
        np.save(Path(folder) / "loss_f32.npy", loss)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
