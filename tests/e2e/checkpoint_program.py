"""One of several processes that restore a checkpoint, say what they found, and save the next: `checkpoint_program.py WORKDIR STEP`.

It takes the newest whole checkpoint as a run does, and saves what it restored as STEP, spread over the devices of all processes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.schema import RunConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.parallel import hosts

CONFIG = RunConfig(name="c", model=SIZES["nano"])


def spread(devices):
    """The shardings of `values` over the devices: the kernel's rows over all of them, the rest on each."""
    mesh = jax.sharding.Mesh(np.asarray(devices), ("all",))
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("all"))
    return jax.tree.map(lambda x: rows if x.ndim else whole, values())


def values():
    """What is saved: numbers whose last bits matter."""
    draw = np.random.default_rng(0)
    kernel = draw.standard_normal((16, 5), np.float32)
    return {
        "params": {"kernel": kernel},
        "opt_state": {"mu": kernel / 3, "count": np.int32(3)},
        "step": np.int32(3),
        "data_step": np.int32(4),
    }


def placed(shardings):
    """`values` as arrays with the shardings, made by every process for its own devices."""
    return jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda index: jnp.asarray(x[index])), values(), shardings)


def abstract(shardings):
    """Their shapes."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), values(), shardings)


def main(workdir: str, step: int) -> None:
    """Does what the module says."""
    hosts.start()
    manager = CheckpointManager(workdir)
    for found in reversed(manager.steps()):
        problem = manager.damage(found)
        if not problem:
            break
        print(f"damaged {found} {manager.move_aside(found).name}", flush=True)
    state = manager.restore(abstract(spread(jax.devices())), step=found)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(values()), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index])
    print(f"restored {found}, {len(jax.local_devices())} of {jax.device_count()} devices", flush=True)
    manager.save(step, state, config=CONFIG)
    manager.close()
    print(f"saved {manager.steps()}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
