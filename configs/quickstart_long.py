"""The quickstart within an hour on two CPU cores: the same data, model and front, more updates, and more grounding in the pairs.

easy-VQA has seen enough of its questions long before the end, so two of its five rows give way to four rows of scenes.
"""

from __future__ import annotations

import dataclasses

from configs.quickstart import blocks, quickstart
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import RunConfig


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `debug` for seconds on generated data, `steps=N`."""
    config = quickstart(steps=6_500, name="quickstart_long")
    data = dataclasses.replace(config.data, blocks=blocks(shapes_rows=3, scenes_rows=8, grounding=6.0))
    return with_arg(dataclasses.replace(config, data=data), arg)
