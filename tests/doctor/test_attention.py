"""The doctor's look at an attention: the program of TPUs, run step by step here, passes; one that is wrong does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from ofa_jax.config.load import read_config
from ofa_jax.config.schema import RunConfig
from ofa_jax.doctor.attention import check_attention
from ofa_jax.models.attention import ATTENTION, reference_attention
from ofa_jax.models.attention_tpu import step_by_step

ROOT = Path(__file__).resolve().parents[2]


def small(attention: Any, *, precision: Any) -> RunConfig:
    config = read_config(f"{ROOT}/configs/ofa_tiny.py:debug")
    assert isinstance(config, RunConfig)
    blocks = tuple(
        dataclasses.replace(block, source_len=20, target_len=18, num_patches=10 if block.name == "pairs" else 0)
        for block in config.data.blocks
        if block.name in ("pairs", "text")
    )
    model, data = dataclasses.replace(config.model, attention=attention), dataclasses.replace(config.data, blocks=blocks)
    return dataclasses.replace(config, model=model, data=data, precision=precision)


@pytest.fixture
def wrong() -> Iterator[str]:
    """An attention that is a hundredth off."""
    ATTENTION["wrong"] = lambda q, *rest, **options: reference_attention(jnp.asarray(1.01, q.dtype) * q, *rest, **options)
    yield "wrong"
    del ATTENTION["wrong"]


def test_an_attention_that_is_wrong_is_found(wrong: str):
    [finding] = check_attention(small(wrong, precision="f32"))
    assert finding.status == "FAIL" and "--config.model.attention=reference" in finding.advice, finding


@pytest.mark.full
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_program_for_tpus_passes(precision: str):
    with step_by_step():
        [finding] = check_attention(small("pallas", precision=precision))
    assert finding.status == "ok", finding
