"""Compares the last checkpoints of two runs: `compare_states.py WORKDIR WORKDIR` prints one JSON object.

`bitwise`: all parts of the state (parameters, optimizer, averages, counters) are the same to the last bit. `parameters`: the largest
difference in parameters and their average. `optimizer`: the same of its moments. Differences are not taken as fractions of a tensor's
entries, as some (biases of keys) have a gradient of 0 in exact arithmetic, and are nothing but rounding: 1e-14 after 30 steps in float64.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from ofa_jax.checkpoint.manager import CheckpointManager


def states(workdirs: list[str]) -> list[list[tuple[str, np.ndarray]]]:
    """The leaves, by path, of each run's newest checkpoint."""
    managers = [CheckpointManager(workdir, read_only=True) for workdir in workdirs]
    configs = [manager.run_config() for manager in managers]
    jax.config.update("jax_enable_x64", configs[0].precision == "f64")

    from ofa_jax.parallel.mesh import make_mesh
    from ofa_jax.train.start import restore_state
    from ofa_jax.train.state import abstract_state

    found = []
    for config, manager in zip(configs, managers, strict=True):
        mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
        step = manager.latest()
        assert step is not None and not manager.damage(step), f"{manager.directory}: no whole checkpoint"
        state = restore_state(config, manager, step, mesh=mesh, abstract=abstract_state(config))
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        found.append([(jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf)) for path, leaf in leaves])
    return found


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two entries; not a number where one is none."""
    return float(np.max(np.abs(a - b), initial=0.0))


def compare(first: list[tuple[str, np.ndarray]], second: list[tuple[str, np.ndarray]]) -> dict[str, object]:
    """What the module says."""
    assert [name for name, _ in first] == [name for name, _ in second]
    pairs = [(name, a, b) for (name, a), (_, b) in zip(first, second, strict=True)]
    floats = [(name, difference(a, b)) for name, a, b in pairs if a.dtype.kind == "f"]
    return {
        "bitwise": all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for _, a, b in pairs),
        "dtype": sorted({str(a.dtype) for name, a, _ in pairs if name.startswith("params")}),
        "parameters": float(np.max([value for name, value in floats if name.startswith(("params", "ema"))])),
        "optimizer": float(np.max([value for name, value in floats if name.startswith("opt_state")], initial=0.0)),
    }


if __name__ == "__main__":
    print(json.dumps(compare(*states(sys.argv[1:3]))))
