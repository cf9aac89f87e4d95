"""OFA-large, second stage: goes on from the weights of `runs/ofa_large` at 480 px with all 900 patches.

Learning rate 5e-5, 150,000 updates, 480 px and no sampling are what the config stored in the released large checkpoint says."""

from __future__ import annotations

from configs.recipes.pretraining import pretraining
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import RunConfig


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `debug` for seconds on a CPU with generated data, `steps=N`."""
    return with_arg(pretraining("large", stage=2, image_px=480, num_patches=0, learning_rate=5e-5, steps=150_000), arg)
