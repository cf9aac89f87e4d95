"""How many pictures a second a VQGAN encodes, and how many codes lower precision changes."""

from __future__ import annotations

import argparse
import dataclasses
import time

import jax
import numpy as np

from ofa_jax.config.schema import VQGANConfig
from ofa_jax.models import vqgan
from ofa_jax.models.vqgan_codec import Codec


@dataclasses.dataclass(frozen=True)
class CodeRates:
    """What was measured with drawn weights: rates are those of trained ones, agreement is not (their scores lie farther apart)."""

    device: str
    pictures_per_s: dict[str, float]  # by precision, median of the repeats, pictures copied to the device and codes back
    agreement: float  # share of the codes that are equal in both precisions

    def line(self, *, image_px: int, rows: int) -> str:
        """Returns a sentence that says it."""
        rates = ", ".join(f"{rate:.2f} pictures/s in {name}" for name, rate in self.pictures_per_s.items())
        return f"codes: {rates} at {image_px} px, {rows} at a time, on {self.device}; {self.agreement:.4f} of the codes agree"


def report(flags: argparse.Namespace) -> str:
    """Returns a line that says how fast pictures become codes (`launch/bench.py codes`)."""
    shape = {"image_px": flags.image_px, "rows": flags.rows}
    return time_encoder(VQGANConfig(), **shape, repeats=flags.repeats).line(**shape)


def time_encoder(
    config: VQGANConfig, *, image_px: int, rows: int, repeats: int, precisions: tuple[str, ...] = ("f32", "bf16")
) -> CodeRates:
    """Returns the rates of encoding `rows` pictures of `image_px` at a time; the precisions take turns in every repeat."""
    params = jax.device_get(vqgan.create(config, jax.random.key(0), precision="f32")[1])
    codecs = {name: Codec(config, params, rows=rows, precision=name) for name in precisions}
    images = np.random.default_rng(0).integers(0, 256, (rows, image_px, image_px, 3), np.uint8)
    codes = {name: codec.encode(images) for name, codec in codecs.items()}
    times: dict[str, list[float]] = {name: [] for name in precisions}
    for _ in range(repeats):
        for name, codec in codecs.items():
            start = time.perf_counter()
            codec.encode(images)
            times[name].append(time.perf_counter() - start)
    first, *rest = codes.values()
    agreement = float(np.mean([np.mean(first == other) for other in rest])) if rest else 1.0
    rates = {name: rows / float(np.median(taken)) for name, taken in times.items()}
    return CodeRates(jax.devices()[0].device_kind, rates, agreement)
