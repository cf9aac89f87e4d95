"""Three ways to decode the quickstart: greedily, with OFA's beam of 5, and the answers of its training data by their probability."""

from __future__ import annotations

from ofa_jax.config.decoding import DecodeSetting, SweepConfig


def get_sweep() -> SweepConfig:
    """Returns the sweep; checkpoints and sets are those of the command line, or the run's newest and all."""
    return SweepConfig(
        decode=(
            DecodeSetting("greedy"),
            DecodeSetting("beam", method="beam"),
            DecodeSetting("answers", method="score", tasks=("vqa", "matching"), answers="training"),
        )
    )
