"""The quickstart's debug variant with two of its six row blocks, pictures and prose, and one layer each: it compiles in seconds."""

from __future__ import annotations

import dataclasses

from configs.quickstart import get_config as quickstart
from ofa_jax.config.schema import RunConfig


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg` as in configs/quickstart.py."""
    config = quickstart(f"debug,{arg}")
    blocks = tuple(block for block in config.data.blocks if block.name in ("captions", "prose"))
    model = dataclasses.replace(config.model, encoder_layers=1, decoder_layers=1)
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, blocks=blocks))
