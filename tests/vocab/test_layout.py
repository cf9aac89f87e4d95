"""The one id space at OFA's numbers."""

from __future__ import annotations

import pytest

from ofa_jax.config.schema import VocabConfig
from ofa_jax.vocab.layout import bin_id, bin_of, code_id, code_of

OFA = VocabConfig()


def test_ofas_landmarks() -> None:
    assert (OFA.size, OFA.mask_id) == (59_457, 50_264)
    assert [code_id(0, vocab=OFA), code_id(8191, vocab=OFA)] == [50_265, 58_456]
    assert [bin_id(0, vocab=OFA), bin_id(999, vocab=OFA)] == [58_457, 59_456]


def test_ids_back_to_codes_and_bins() -> None:
    assert [code_of(token, vocab=OFA) for token in (50_264, 50_265, 58_456, 58_457)] == [None, 0, 8191, None]
    assert [bin_of(token, vocab=OFA) for token in (58_456, 58_457, 59_456, 59_457)] == [None, 0, 999, None]


@pytest.mark.parametrize("value", [-1, 8192])
def test_codes_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match=f"image code: found {value}, expected 0 to 8191"):
        code_id(value, vocab=OFA)


@pytest.mark.parametrize("value", [-1, 1000])
def test_bins_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match=f"location bin: found {value}, expected 0 to 999"):
        bin_id(value, vocab=OFA)
