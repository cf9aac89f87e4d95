"""A small VQGAN (f=4, 512 codes) on the quickstart's scenes, within twenty minutes on two CPU cores.

What makes it learn so fast: residual branches that begin at 0, norms of each pixel, and a quantiser that begins late (from the first update
on, its runs came to one grey for all pictures).
"""

from __future__ import annotations

import dataclasses

from configs.quickstart_vqgan import small_vqgan
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import VQGANRunConfig


def get_config(arg: str = "") -> VQGANRunConfig:
    """Returns the run; `arg`: `debug` for seconds on generated data, `steps=N`."""
    run = small_vqgan("vqgan_scenes", steps=3_200)
    model = dataclasses.replace(run.model, num_codes=512)
    plan = dataclasses.replace(run.eval, limit=1_000, every_steps=800)
    return with_arg(dataclasses.replace(run, model=model, eval=plan), arg)
