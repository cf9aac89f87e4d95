"""`launch/bench.py train`: the training step of a size, by one of two protocols, beside PyTorch's OFA on the same work."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import jax

from ofa_jax.bench.peer import run_peer
from ofa_jax.bench.protocols import pretraining_step, same_work
from ofa_jax.bench.steps import StepTimes, group_of, time_step
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.hardware import hardware_of
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import RunConfig
from ofa_jax.config.sizes import SIZES
from ofa_jax.convert.huggingface import config_json
from ofa_jax.models.operations import sequences_a_row

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_WORK = ("rows", "source_len", "target_len", "image_px", "num_patches")


def report(flags: argparse.Namespace) -> str:
    """Returns what was measured as lines, and writes all numbers to `flags.json` where that is given.

    Raises `UserError` where the config does not fit the flags or the peer fails.
    """
    config = _config(flags)
    ours = time_step(config, steps=flags.steps)
    lines = [f"train: {flags.protocol}, batch norm {config.model.image_norm}", *ours.lines()]
    numbers: dict[str, Any] = {"protocol": flags.protocol, "ofa_jax": ours.to_dict()}
    if flags.peer:
        for way in ("as published",) if flags.text_only else ("as published", "tuned"):  # tuned is what is done to pictures
            found = run_peer(flags.peer, "modelscope_train.py", _setting(flags, config, tuned=way == "tuned"))
            numbers[f"peer, {way}"] = found
            lines += _beside(ours, found, way)
    if flags.json:
        flags.json.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return "\n".join(lines)


def _config(flags: argparse.Namespace) -> RunConfig:
    config = sized(flags, **{name: getattr(flags, name) for name in ("layers", "remat", "attention")})
    if flags.protocol == "pretraining":
        return pretraining_step(config, parts=flags.parts)
    return work_of(flags, config, text_only=flags.text_only)


def sized(flags: argparse.Namespace, **changes: Any) -> RunConfig:
    """Returns the run of `flags.size` with the flags' precision, batch norm and convolution, and with `changes` of its model.

    Raises `ConfigError` for a size that has no config.
    """
    sizes = sorted(path.stem.removeprefix("ofa_") for path in _CONFIGS.glob("ofa_*.py") if path.stem.removeprefix("ofa_") in SIZES)
    if flags.size not in sizes:
        raise ConfigError(f"--size: found {flags.size}, expected one of {', '.join(sizes)}")
    config = read_config(str(_CONFIGS / f"ofa_{flags.size}.py"))
    assert isinstance(config, RunConfig)
    hardware = hardware_of(jax.devices()[0].device_kind)
    convolution = flags.convolution or (hardware and hardware.convolution) or config.model.convolution
    changes |= {"convolution": convolution, "dropout_bits": flags.dropout_bits}
    model = dataclasses.replace(config.model, image_norm=flags.norm, **changes)
    return dataclasses.replace(config, model=model, precision=flags.precision)


def work_of(flags: argparse.Namespace, config: RunConfig, *, text_only: bool = False) -> RunConfig:
    """Returns the run with the one block that the flags describe (`protocols.same_work`). Raises `ConfigError` for no rows."""
    if flags.rows < 1:
        raise ConfigError(f"--rows: found {flags.rows}, expected 1 or more")
    work = {name: getattr(flags, name) for name in _WORK} | ({"image_px": 0, "num_patches": 0} if text_only else {})
    return same_work(config, **work)


def _setting(flags: argparse.Namespace, config: RunConfig, *, tuned: bool) -> dict[str, Any]:
    """What the peer is asked: its own model's config, the blocks as it runs them (every sequence with its own picture), the optimizer."""
    blocks = []
    for block in config.data.row_blocks:
        for place in range(block.num_places):
            sequences = block.rows * sequences_a_row(block) // block.num_places
            source_len, target_len = block.lens_of(place)
            blocks.append(
                {"rows": sequences, "source_len": source_len, "target_len": target_len}
                | {"image_px": block.image_px, "num_patches": block.num_patches}
            )
    optimizer = config.optimizer
    return {
        "model": config_json(config.model, config.vocab),
        "blocks": blocks,
        "precision": config.precision,
        "image_norm": config.model.image_norm,
        "steps": flags.steps,
        "group": group_of(flags.steps),
        "tuned": tuned,
        "learning_rate": optimizer.learning_rate,
        "betas": [optimizer.beta1, optimizer.beta2],
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "clip_norm": optimizer.clip_norm,
    }


def _beside(ours: StepTimes, found: dict[str, Any], way: str) -> list[str]:
    median = statistics.median(found["step_s"])
    memory = f"; most in use {found['peak_bytes'] / 1e9:.2f} GB" if found.get("peak_bytes") else ""
    rate = found["sequences"] / median
    return [
        f"peer     {way}, {found['program']}, {found['threads']} thread(s)",
        f"  a step {median * 1e3:,.1f} ms (median of {len(found['step_s'])}): {rate:,.2f} sequences/s{memory}",
        f"  ratio of sequences/s: {ours.sequences_s / rate:.2f}",
    ]
