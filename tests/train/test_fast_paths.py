"""Loss and all gradients of a training step by every faster path, beside the plain one: no further off than the precision itself.

`pytest -m full -s tests/train/test_fast_paths.py` prints the errors: norms of differences over norms, the worst of all tensors.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofa_jax.config.load import read_config
from ofa_jax.config.schema import RunConfig
from ofa_jax.doctor.attention import errors, gradients
from ofa_jax.models.attention_tpu import step_by_step

ROOT = Path(__file__).resolve().parents[2]
PLAIN: dict[str, Any] = {"layers": "unroll", "remat": "none", "attention": "reference", "convolution": "xla"}
PATHS: dict[str, dict[str, Any]] = {
    "layers=scan": {"layers": "scan"},
    "remat=dots": {"layers": "scan", "remat": "dots"},
    "remat=full": {"layers": "scan", "remat": "full"},
    "attention=pallas": {"attention": "pallas"},
    "attention=pallas, remat=dots": {"attention": "pallas", "layers": "scan", "remat": "dots"},
    "attention=pallas, remat=full": {"attention": "pallas", "layers": "scan", "remat": "full"},
    "convolution=matmul": {"convolution": "matmul"},
    "logit_chunk=5": {"logit_chunk": 5},
}


def run_of(precision: Any, changes: dict[str, Any]) -> RunConfig:
    """OFA-tiny on small blocks of odd lengths, one with sampled patches, one with a whole picture and one without."""
    config = read_config(f"{ROOT}/configs/ofa_tiny.py:debug")
    assert isinstance(config, RunConfig)
    blocks = tuple(
        dataclasses.replace(block, source_len=19, target_len=13 if block.name == "pairs" else block.target_len, num_patches=patches)
        for block in config.data.blocks
        if (patches := {"pairs": 11, "detection": 0, "text": 0}.get(block.name)) is not None
    )
    changes = {**PLAIN, **changes}
    loss = dataclasses.replace(config.loss, logit_chunk=changes.pop("logit_chunk", 0))
    # No maximum over pixels: it passes a gradient to another one for a difference of rounding.
    model = dataclasses.replace(config.model, resnet=dataclasses.replace(config.model.resnet, stem_pool=False), **changes)
    return dataclasses.replace(config, model=model, loss=loss, precision=precision, data=dataclasses.replace(config.data, blocks=blocks))


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, np.ndarray]]:
    return {precision: gradients(run_of(precision, {})) for precision in ("f32", "bf16")}


@pytest.mark.full
@pytest.mark.parametrize("name", PATHS)
def test_a_faster_path_is_off_by_no_more_than_its_precision(name: str, plain: dict[str, dict[str, np.ndarray]]):
    with step_by_step():
        wide, narrow = (gradients(run_of(precision, PATHS[name])) for precision in ("f32", "bf16"))
    in_f32, ours, theirs = errors(wide, plain["f32"]), errors(narrow, plain["f32"]), errors(plain["bf16"], plain["f32"])
    print(f"\n{name}: f32 {max(in_f32.values()):.1e}, bf16 {max(ours.values()):.1e}, the plain path in bf16 {max(theirs.values()):.1e}")
    assert len(ours) > 100 and max(in_f32.values()) < 2e-5
    assert {tensor: (error, theirs[tensor]) for tensor, error in ours.items() if error > 2 * max(theirs[tensor], 1e-3)} == {}
