"""The doctor's look at an attention: the program of TPUs, run step by step here, passes; one that is wrong does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.config.load import read_config
from ofa_jax.config.schema import RunConfig
from ofa_jax.doctor.attention import check_attention, errors
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
def wrong(request: pytest.FixtureRequest) -> Iterator[str]:
    """An attention whose queries are multiplied by the test's number."""
    ATTENTION["wrong"] = lambda q, *rest, **options: reference_attention(jnp.asarray(request.param, q.dtype) * q, *rest, **options)
    yield "wrong"
    del ATTENTION["wrong"]


@pytest.mark.parametrize("wrong", [1.01, pytest.param(float("nan"), marks=pytest.mark.full)], indirect=True)
def test_an_attention_that_is_wrong_is_found(wrong: str):
    [finding] = check_attention(small(wrong, precision="f32"))
    assert finding.status == "FAIL" and "--config.model.attention=reference" in finding.advice, finding


def test_what_is_not_finite_is_infinitely_far():
    exact = {"a": np.array([3.0, 4.0]), "b": np.ones(2), "c": np.zeros(1)}
    found = errors({"a": np.array([3.0, 4.5]), "b": np.array([1.0, np.nan]), "c": np.array([np.inf])}, exact)
    assert found == {"a": pytest.approx(0.1), "b": np.inf, "c": np.inf}


@pytest.mark.full
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_program_for_tpus_passes(precision: str):
    with step_by_step():
        [finding] = check_attention(small("pallas", precision=precision))
    assert finding.status == "ok", finding
