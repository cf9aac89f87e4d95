"""Rendering, hashing, JSON and differences of configs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import override, read_config
from ofa_jax.config.render import config_hash, diff, from_json, leaves, render, to_json
from ofa_jax.config.schema import InitConfig, RunConfig
from ofa_jax.config.sizes import SIZES

ROOT = Path(__file__).resolve().parents[2]
CONFIG = read_config(str(ROOT / "configs" / "quickstart.py"))


def test_one_leaf_a_line_in_the_order_of_the_schema():
    lines = render(CONFIG).splitlines()
    assert lines[0] == "name = 'quickstart'"
    assert lines[1] == "model.width = 128"
    assert "model.resnet.blocks = (1, 1, 1)" in lines
    assert "data.blocks.captions.rows = 4" in lines
    assert "data.blocks.scenes.sources.1 = dataset='scenes', row='grounding', weight=3.0, split='train'" in lines
    assert "eval.sets.easy_vqa/test = task='vqa', dataset='easy_vqa', split='test', limit=0" in lines
    assert len(lines) == len(set(lines)) == len(leaves(CONFIG))


def test_an_empty_table_is_a_leaf_too():
    config = RunConfig(name="x", model=SIZES["tiny"])
    assert {"data.blocks": "()", "eval.sets": "()"}.items() <= leaves(config).items()


def test_equal_configs_have_equal_text_and_hash():
    written_as_int = dataclasses.replace(
        CONFIG,
        optimizer=dataclasses.replace(CONFIG.optimizer, clip_norm=1),
        loss=dataclasses.replace(CONFIG.loss, drop_worst=(0, 0)),
    )
    assert written_as_int == CONFIG
    assert render(written_as_int) == render(CONFIG)
    assert config_hash(written_as_int) == config_hash(CONFIG)
    assert len(config_hash(CONFIG)) == 64


def test_a_changed_leaf_changes_the_hash_and_shows_in_the_difference():
    other = override(CONFIG, [("optimizer.beta2", "0.98"), ("data.blocks.scenes.sources.0.weight", "3")])
    assert config_hash(other) != config_hash(CONFIG)
    assert diff(CONFIG, CONFIG) == []
    first, second = diff(CONFIG, other)
    assert first.endswith("weight=2.0, split='train' -> dataset='scenes', row='question', weight=3.0, split='train'")
    assert second == "optimizer.beta2: 0.999 -> 0.98"


def test_a_block_that_one_side_lacks():
    fewer = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, blocks=CONFIG.data.blocks[:-1]))
    assert "data.blocks.prose.rows: 8 -> (none)" in diff(CONFIG, fewer)
    assert "data.blocks.prose.rows: (none) -> 8" in diff(fewer, CONFIG)


@given(
    rate=st.floats(min_value=1e-12, max_value=1e3),
    name=st.text(max_size=20),
    blocks=st.lists(st.integers(1, 40), max_size=4),
    seed=st.integers(0, 2**63),
)
def test_json_gives_back_an_equal_config(rate, name, blocks, seed):
    resnet = dataclasses.replace(CONFIG.model.resnet, blocks=tuple(blocks))
    config = dataclasses.replace(
        CONFIG,
        name=name,
        seed=seed,
        optimizer=dataclasses.replace(CONFIG.optimizer, learning_rate=rate),
        model=dataclasses.replace(CONFIG.model, resnet=resnet),
    )
    assert from_json(to_json(config)) == config
    assert render(from_json(to_json(config))) == render(config)


def _stored(change) -> str:
    data = json.loads(to_json(CONFIG))
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "stored config: found no JSON at line 1"),
        ("[]", "stored config: found \\[\\], expected a group of fields"),
        (_stored(lambda d: d.update(stepz=1)), "stored config: found the unknown field stepz; did you mean steps?"),
        (_stored(lambda d: d.pop("name")), "stored config: found no field name, expected a text"),
        (_stored(lambda d: d["model"].pop("width")), "stored config.model: found no field width, expected an integer"),
        (_stored(lambda d: d["data"]["blocks"][0].pop("rows")), "stored config.data.blocks.0: found no field rows, expected an integer"),
        (_stored(lambda d: d["loss"].update(drop_worst=[0.1])), "stored config.loss.drop_worst: found \\[0.1\\], expected a finite number"),
        (_stored(lambda d: d["model"].update(width="wide")), "stored config.model.width: found 'wide', expected an integer"),
        (_stored(lambda d: d["data"]["blocks"][1].update(stream="sound")), "stored config.data.blocks.1.stream: found 'sound'"),
        (_stored(lambda d: d["data"].update(blocks=3)), "stored config.data.blocks: found 3"),
    ],
)
def test_a_stored_config_that_does_not_fit(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        from_json(text)


def test_a_config_stored_before_a_field_existed_has_its_default():
    def older(d):
        del d["loss"]["drop_worst"], d["optimizer"]["ema_decay"], d["data"]["blocks"][0]["num_patches"], d["init"]

    expected = dataclasses.replace(
        CONFIG,
        optimizer=dataclasses.replace(CONFIG.optimizer, ema_decay=0.0),
        data=dataclasses.replace(CONFIG.data, blocks=(dataclasses.replace(CONFIG.data.blocks[0], num_patches=0), *CONFIG.data.blocks[1:])),
        init=InitConfig(),
    )
    assert from_json(_stored(older)) == expected


def test_numbers_that_json_cannot_hold_are_refused():
    config = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, eps=float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        to_json(config)
