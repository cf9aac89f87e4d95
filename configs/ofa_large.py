"""OFA-large (473 M parameters), first stage of two: 384 px with 196 of 576 patches sampled (authors' statement and released script)."""

from __future__ import annotations

from configs.recipes.pretraining import pretraining
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import RunConfig


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `debug` for seconds on a CPU with generated data, `steps=N`."""
    return with_arg(pretraining("large", image_px=384, num_patches=196), arg)
