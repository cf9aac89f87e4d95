"""`launch/bench.py reward`: a self-critical step (writing, rewarding, updating) beside the cross-entropy step on as many sequences."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ofa_jax.bench.noise import noise_batch
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import RunConfig
from ofa_jax.data.batch import Batch, Block
from ofa_jax.eval.rewards import CiderReward, ended, references_of
from ofa_jax.metrics.document_frequencies import document_frequencies
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.pretraining import Pretraining
from ofa_jax.train.reward import SelfCritical
from ofa_jax.train.state import init_state
from ofa_jax.train.step import make_train_step
from ofa_jax.vocab.tokenizer import load_tokenizer

_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "finetune" / "coco_caption_reward.py"


def report(flags: argparse.Namespace) -> str:
    """Returns the medians of both steps and their quotient as lines; the words are noise, hypotheses run to their full length.

    Raises `ConfigError` for no rows, no steps and a size that there is not.
    """
    for name in ("rows", "steps"):
        if getattr(flags, name) < 1:
            raise ConfigError(f"--{name}: found {getattr(flags, name)}, expected 1 or more")
    config = read_config(f"{_CONFIG}:size={flags.size}")
    assert isinstance(config, RunConfig)
    [block] = config.data.blocks
    block = dataclasses.replace(block, rows=flags.rows, image_px=flags.image_px)
    data = dataclasses.replace(config.data, blocks=(block,))
    config = dataclasses.replace(
        config, data=data, precision=flags.precision, model=dataclasses.replace(config.model, convolution=flags.convolution)
    )
    mesh, tokenizer = make_mesh(config.mesh), load_tokenizer(config.vocab)
    blocks, state = noise_batch(config, mesh), init_state(config, mesh)
    host = {name: Block(**{**jax.device_get(one)._asdict(), "elements": np.arange(flags.rows)}) for name, one in blocks.items()}
    references = references_of(host[block.name], flags.rows, tokenizer)
    rewarder = CiderReward(tokenizer, document_frequencies([[ended(text) for text in row] for row in references]))
    critical = SelfCritical(config, mesh, Pretraining(config).graphdef, rewarder)
    step: Any = make_train_step(config, mesh, num_tasks=1)
    compiled = step.lower(state, blocks).compile()
    plain, whole, writing = [], [], []
    for number in range(flags.steps + 1):
        began = time.perf_counter()
        state, metrics = compiled(state, blocks)
        jax.block_until_ready((state, metrics))
        between = time.perf_counter()
        own, _ = critical(state, Batch(number, host, ()), blocks)
        written = time.perf_counter()
        state, metrics = compiled(state, own)
        jax.block_until_ready((state, metrics))
        if number:  # the first compiles
            plain.append(between - began)
            writing.append(written - between)
            whole.append(time.perf_counter() - between)
    critical.close()
    sequences = flags.rows * block.pairs_per_image
    device = next(iter(mesh.devices.flat)).device_kind
    one, other, wrote = (statistics.median(times) for times in (plain, whole, writing))
    return "\n".join(
        [
            f"reward: {config.name}, {config.precision}, {device}: {flags.rows} pictures of {flags.image_px} px, {sequences} sequences",
            f"  cross-entropy step      {one * 1e3:8,.1f} ms (median of {len(plain)})",
            f"  self-critical step      {other * 1e3:8,.1f} ms, of it {wrote * 1e3:,.1f} ms writing and rewarding",
            f"  ratio                   {other / one:8.2f}",
        ]
    )
