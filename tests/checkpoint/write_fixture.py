"""Writes the checkpoint of one format version that the tests restore for ever: `python tests/checkpoint/write_fixture.py FORMAT`.

Run it once, with the code that wrote that format; a file in `written/` is never written again. The state is a whole train state of a tiny
model whose arrays are counted, not drawn, so that the file is small and its contents can be said by `counted`. From format 3 on there is a
second one beside it, `light`, that holds only what is trained and lies over the first.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
STEP, TOKENIZER = 7, "0123456789abcdef"
FROZEN = ("resnet", "encoder/layers", "decoder/layers/ffn")  # in the second


def counted(abstract):
    """Returns the tree with arrays 0, 1, ... 12, 0, ... plus the leaf's place modulo 7; `step` and `data_step` are STEP and STEP + 1."""
    import jax
    import numpy as np

    leaves, tree = jax.tree.flatten(abstract)
    made = [(np.arange(leaf.size) % 13 + place % 7).reshape(leaf.shape).astype(leaf.dtype) for place, leaf in enumerate(leaves)]
    state = jax.tree.unflatten(tree, made)
    return dataclasses.replace(state, step=np.int32(STEP), data_step=np.int32(STEP + 1))


def main(version: str) -> None:
    """Writes `written/format_<version>.tar.xz`."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "train")]
    import jax
    import jax.numpy as jnp
    from train_case import CONFIG

    from ofa_jax.checkpoint.base import Base
    from ofa_jax.checkpoint.manager import CheckpointManager
    from ofa_jax.config.parameters import is_named
    from ofa_jax.parallel.rules import key_path_parts
    from ofa_jax.train.state import abstract_state

    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, width=16, ffn_width=32), workdir="runs/{name}")
    state = jax.tree.map(jnp.asarray, counted(abstract_state(config)))
    with tempfile.TemporaryDirectory() as folder:
        manager = CheckpointManager(folder)
        manager.save(STEP, state, config=config, identity={"tokenizer": TOKENIZER}, wait=True)
        manager.close()
        light = dataclasses.replace(
            config,
            optimizer=dataclasses.replace(config.optimizer, frozen=FROZEN),
            checkpoint=dataclasses.replace(config.checkpoint, content="trained"),
            init=dataclasses.replace(config.init, checkpoint="runs/base"),
        )
        state = jax.tree.map(jnp.asarray, counted(abstract_state(light)))
        paths = (key_path_parts(path) for path, _ in jax.tree_util.tree_flatten_with_path(state.params)[0])
        names = tuple("/".join(path) for path in paths if is_named(path, FROZEN))
        base = Base("/runs/base", STEP, manager.digest(STEP), names, stats=False)
        manager = CheckpointManager(Path(folder) / "light")
        manager.save(STEP, state, config=light, identity={"tokenizer": TOKENIZER}, base=base, wait=True)
        manager.close()
        with tarfile.open(HERE / "written" / f"format_{version}.tar.xz", "x:xz") as archive:
            for name in (f"checkpoints/{STEP}", f"light/checkpoints/{STEP}"):
                archive.add(Path(folder) / name, name)


if __name__ == "__main__":
    main(sys.argv[1])
