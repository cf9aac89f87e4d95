"""OFA-medium (93 M parameters), pretraining at 256 px with all 256 patches (OFA paper; no released script exists for this size)."""

from __future__ import annotations

from configs.recipes.pretraining import pretraining
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import RunConfig


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `debug` for seconds on a CPU with generated data, `steps=N`."""
    return with_arg(pretraining("medium", image_px=256, num_patches=0), arg)
