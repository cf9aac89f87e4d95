"""What the tests of conversion share: the golden model's field of weights, and small OFAs of every shape that config fields allow."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from ofa_jax.config.schema import ResNetConfig

_SPEC = importlib.util.spec_from_file_location("convert_golden", Path(__file__).parents[1] / "models" / "golden.py")
_golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_golden)

SMALL_RESNET = ResNetConfig(blocks=(1, 2), base_width=8, strides=(1, 2))
VARIANTS = {
    "golden": {},
    "deep": {"encoder_layers": 3, "decoder_layers": 1, "resnet": SMALL_RESNET},
    "other_tables": {"resnet": SMALL_RESNET, "token_bucket_size": 16, "image_bucket_size": 20, "code_filler_id": 400},
    "other_positions": {"resnet": SMALL_RESNET, "num_source_positions": 66, "num_target_positions": 42, "code_image_px": 64},
    "one_block": {"resnet": dataclasses.replace(SMALL_RESNET, blocks=(1, 1, 1), strides=(1, 2, 2)), "num_heads": 2},
    "light": {"resnet": SMALL_RESNET, "adapter_width": 6, "prompt_lens": (3, 5)},
    "adapters": {"resnet": SMALL_RESNET, "adapter_width": 5},
    "prompt": {"resnet": SMALL_RESNET, "prompt_lens": (0, 2)},
}


@pytest.fixture(scope="session")
def golden():
    """The module with the golden model's configuration and field."""
    return _golden


# Two tensors more or other lengths are the same code: of those the fast tier has one of each kind.
_FAST = ("golden", "one_block", "light")


@pytest.fixture(scope="session", params=[pytest.param(name, marks=[] if name in _FAST else [pytest.mark.full]) for name in VARIANTS])
def model(request):
    """A small model of every kind."""
    return dataclasses.replace(_golden.MODEL, **VARIANTS[request.param])


@pytest.fixture(scope="session")
def small(golden):
    """A model whose weights take little time to write."""
    return dataclasses.replace(golden.MODEL, **VARIANTS["deep"])
