"""A training step whose masks are made by the hash: the same on all layouts and with all policies of what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from test_attention_paths import LAYOUTS, one_step, with_attention

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return one_step(with_attention("reference", dropout_bits="hash"), LAYOUTS["one device"])


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("one device", {"layers": "unroll", "remat": "full"}),
        ("one device", {"remat": "dots"}),
        ("fsdp 2 x tensor 2", {}),
        ("fsdp 2 x tensor 2", {"layers": "unroll", "remat": "dots"}),
    ],
)
def test_a_step_is_the_same_however_it_is_run(expected: dict[str, np.ndarray], layout: str, changes: dict[str, str]):
    found = one_step(with_attention("reference", dropout_bits="hash", **changes), LAYOUTS[layout])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=2e-5 * np.abs(value).max() + 1e-9, err_msg=name)


def test_other_bits_are_other_masks(expected: dict[str, np.ndarray]):
    threefry = one_step(with_attention("reference", dropout_bits="threefry"), LAYOUTS["one device"])
    assert threefry["loss"] != expected["loss"]
    np.testing.assert_allclose(threefry["loss"], expected["loss"], rtol=0.02)
