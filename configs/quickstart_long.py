"""The quickstart within an hour on two CPU cores: the same data, model and front, 2.4 times the updates."""

from __future__ import annotations

from configs.quickstart import quickstart
from ofa_jax.config.debug import with_arg
from ofa_jax.config.schema import RunConfig


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg`: `debug` for seconds on generated data, `steps=N`."""
    return with_arg(quickstart(steps=8_000, name="quickstart_long"), arg)
