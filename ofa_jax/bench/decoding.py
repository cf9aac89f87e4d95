"""`launch/bench.py decode`: beam search of captions with an exported folder's weights, beside modelscope's generator."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import jax
import numpy as np

from ofa_jax.bench.peer import call_peer
from ofa_jax.convert.state_files import read_state
from ofa_jax.convert.transfer import read_model
from ofa_jax.convert.weights import from_state
from ofa_jax.decode.bench import compare, time_beam_search
from ofa_jax.decode.rules import DecodeConfig


def report(flags: argparse.Namespace) -> str:
    """Returns lines that say how fast captions are searched, the encoder apart, and where there is a peer, its times and the ratios."""
    config, state = read_model(read_state(flags.folder))
    weights = from_state(state, config.model, config.vocab, where=str(flags.folder))
    rng = np.random.default_rng(0)
    source_ids = rng.integers(4, config.vocab.num_text, (flags.batch, 8)).astype(np.int32)
    source_ids[:, 0], source_ids[:, -1] = 0, 2
    images = rng.integers(0, 256, (flags.batch, flags.image_px, flags.image_px, 3), np.uint8)
    setting = DecodeConfig(beam=flags.beam, max_len=flags.max_len, no_repeat_ngram=flags.no_repeat_ngram)
    ours = time_beam_search(
        weights.params, weights.stats, config.model, config.vocab, source_ids=source_ids, images=images, config=setting,
        precision=flags.precision, repeats=flags.repeats,
    )  # fmt: skip
    device = jax.devices()[0].device_kind
    what = (
        f"{config.name}, {flags.image_px} px, batch {flags.batch}, beam {flags.beam}, {flags.max_len} tokens, {flags.precision}, {device}"
    )
    peer = _peer_times(flags, source_ids, images) if flags.peer else None
    return "\n".join([f"decode: {what}", *compare(ours, peer, batch=flags.batch)])


def _peer_times(flags: argparse.Namespace, source_ids: np.ndarray, images: np.ndarray) -> dict[str, np.ndarray]:
    setting = {"beam": flags.beam, "max_len": flags.max_len, "no_repeat_ngram": flags.no_repeat_ngram, "repeats": flags.repeats}
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        pixels = (images.transpose(0, 3, 1, 2) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
        np.savez(given, src_tokens=source_ids.astype(np.int64), patch_images=pixels)
        call_peer(flags.peer, "modelscope_decode.py", [str(flags.folder), str(given), str(out), json.dumps(setting)])
        with np.load(out) as stored:
            return dict(stored)
