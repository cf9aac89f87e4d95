"""OFA-base (182 M parameters), pretraining at 384 px.

The released script samples 196 of the 576 patches, which this run does. The paper finds no benefit in sampling beyond its speed;
`--config.data.blocks.pairs.num_patches=0` keeps all."""

from __future__ import annotations

from configs.recipes.pretraining import pretraining
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import RunConfig


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `debug` for seconds on a CPU with generated data, `steps=N`."""
    return with_arg(pretraining("base", image_px=384, num_patches=196), arg)
