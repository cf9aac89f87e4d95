"""Cross-field checks of a VQGAN's run: every rule has a config that breaks it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ofa_jax.config.check import check, problems
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import load_config, override, read_config
from ofa_jax.config.schema import BlockConfig, RunConfig, SourceConfig

ROOT = Path(__file__).resolve().parents[2]

BROKEN = {
    "steps=0": "steps: found 0",
    "name=a/b": "name: found 'a/b'",
    "optimizer.beta1=1": "optimizer.beta1: found 1.0",
    "optimizer.frozen=resnet": "optimizer.frozen: found resnet, expected parts of the model",
    "checkpoint.content=trained": "checkpoint.content: found trained, expected all for objective=vqgan",
    "optimizer.accumulate=2": "optimizer.accumulate: found 2, expected 1 for objective=vqgan",
    "model.width=100": "model.width: found 100 channels at level 0, expected a multiple of model.norm_groups=32",
    "model.multiples=1,0": "model.multiples: found (1, 0)",
    "model.attention_levels=4": "model.attention_levels: found (4,), expected levels from 0 to 3",
    "model.num_codes=0": "model.num_codes: found 0",
    "model.quantizer=vq": "model.quantizer",
    "loss.quantizer_weight=-1": "loss.quantizer_weight: found -1.0",
    "loss.quantizer_start_fraction=0.5": "loss.quantizer_start_fraction: found 0.5, expected 0 with model.quantizer=gumbel",
    "loss.quantizer_start_fraction=1": "loss.quantizer_start_fraction: found 1.0, expected 0 or more and below 1",
    "loss.temperature=1,0": "loss.temperature: found 0.0",
    "loss.discriminator_width=50": "loss.discriminator_width: found 100",
    "mesh.data=0": "mesh.data: found 0",
    "data.dir=": "data.dir: found nothing",
    "data.blocks.pictures.rows=12": "data.blocks.pictures.rows: found 12, expected a multiple of 8",
    "data.blocks.pictures.image_px=250": "data.blocks.pictures.image_px: found 250, expected a multiple of 8 (the stride of the codes)",
    "data.blocks.pictures.target_len=4": "data.blocks.pictures.target_len: found 4, expected 0",
    "data.blocks.pictures.sources.0.row=caption": "data.blocks.pictures.sources.0.row: found caption, expected picture",
    "init.parts=encoder": "init.parts: found encoder, expected parts of the model",
    "eval.image_px=100": "eval.image_px: found 100, expected a multiple of 8",
    "eval.limit=0": "eval.limit: found 0",
    "eval.dataset=": "eval.every_steps: found 5000 without eval.dataset",
}


@pytest.fixture(scope="module")
def f8():
    return read_config(str(ROOT / "configs" / "vqgan_f8.py"))


@pytest.mark.parametrize("change", BROKEN)
def test_a_broken_rule_is_one_sentence(f8, change):
    with pytest.raises(ConfigError) as error:
        check(override(f8, [tuple(change.split("=", 1))]), num_devices=8)
    assert str(error.value).startswith((BROKEN[change], f"config.{BROKEN[change]}"))


def test_blocks_of_sequences_are_not_a_vqgan_s_and_pictures_alone_are_not_ofa_s(f8):
    words = BlockConfig("words", "text", 8, 4, 4, (SourceConfig("d", "text_infilling"),))
    changed = dataclasses.replace(f8, data=dataclasses.replace(f8.data, blocks=(words,)))
    assert list(problems(changed)) == ["data.blocks.words.stream: found text, expected pictures, because a VQGAN reads no sequences"]
    ofa = read_config(str(ROOT / "configs" / "ofa_tiny.py"))
    changed = dataclasses.replace(ofa, data=dataclasses.replace(ofa.data, blocks=f8.data.blocks))
    assert list(problems(changed)) == [
        "data.blocks.pictures.stream: found pictures, expected pairs, images or text, because OFA reads sequences"
    ]


def test_commands_about_ofa_refuse_a_vqgan_s_config(f8):
    assert not isinstance(f8, RunConfig)
    with pytest.raises(ConfigError, match="found the run vqgan_f8 of a vqgan, expected one of an OFA model"):
        load_config(["x", f"--config={ROOT}/configs/vqgan_f8.py"])
