"""The run that the fault suite kills by default: small_run.py, and one evaluation set of eight captions."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from ofa_jax.config.schema import RunConfig


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; `arg` as in configs/quickstart.py."""
    spec = importlib.util.spec_from_file_location("small_run", Path(__file__).with_name("small_run.py"))
    assert spec is not None and spec.loader is not None
    small_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small_run)
    config = small_run.get_config(arg)
    sets = tuple(row for row in config.eval.sets if row.task == "captioning")
    return dataclasses.replace(config, name="faults", eval=dataclasses.replace(config.eval, sets=sets, target_len=16))
