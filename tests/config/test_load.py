"""Loading: files, mini-arguments, overrides by type, and the sentence for everything that can be wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.config.fields import parse
from ofa_jax.config.load import load_config, override, parse_arg
from ofa_jax.config.render import diff

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def load(*words: str):
    config, rest = load_config(["train.py", f"--config={QUICKSTART}", *words])
    assert rest == ["train.py"]
    return config


def test_takes_its_own_flags_out_and_leaves_the_rest_in_order():
    config, rest = load_config(["x", "--a=1", "--config", QUICKSTART, "b", "--config.steps=7", "--configure=2", "--", "--config.steps=8"])
    assert config.steps == 7
    assert rest == ["x", "--a=1", "b", "--configure=2", "--", "--config.steps=8"]


@pytest.mark.parametrize(
    ("flag", "read", "value"),
    [
        ("steps=1_000", lambda c: c.steps, 1000),
        ("optimizer.learning_rate=3e-4", lambda c: c.optimizer.learning_rate, 3e-4),
        ("optimizer.learning_rate=1", lambda c: c.optimizer.learning_rate, 1.0),
        ("model.resnet.stem_pool=True", lambda c: c.model.resnet.stem_pool, True),
        ("model.resnet.stem_pool=false", lambda c: c.model.resnet.stem_pool, False),
        ("model.resnet.blocks=3,4,6", lambda c: c.model.resnet.blocks, (3, 4, 6)),
        ("model.resnet.blocks=(3, 4, 6,)", lambda c: c.model.resnet.blocks, (3, 4, 6)),
        ("precision=bf16", lambda c: c.precision, "bf16"),
        ("workdir=a=b", lambda c: c.workdir, "a=b"),
        ("vocab.path=", lambda c: c.vocab.path, ""),
        ("data.blocks.prose.rows=16", lambda c: c.data.blocks[-1].rows, 16),
        ("data.blocks.0.rows=16", lambda c: c.data.blocks[0].rows, 16),
        ("data.blocks.scenes.sources.1.weight=2", lambda c: c.data.blocks[1].sources[1].weight, 2.0),
        ("eval.sets.easy_vqa/test.limit=5", lambda c: c.eval.sets[0].limit, 5),
    ],
)
def test_override_is_parsed_by_the_type_of_its_field(flag, read, value):
    found = read(load(f"--config.{flag}"))
    assert found == value
    assert type(found) is type(value)


def test_an_override_changes_one_leaf_only():
    assert diff(load(), load("--config.model.width=256")) == ["model.width: 128 -> 256"]


def test_the_last_override_wins():
    assert load("--config.steps=3", "--config.steps=4").steps == 4


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("step=3", "config.step: RunConfig has no field step; did you mean steps?"),
        ("model.widht=3", "config.model.widht: ModelConfig has no field widht; did you mean width?"),
        ("steps=many", "config.steps: found 'many', expected an integer"),
        ("steps=1.5", "config.steps: found '1.5', expected an integer"),
        ("optimizer.eps=nan", "config.optimizer.eps: found 'nan', expected a finite number"),
        ("model.resnet.stem_pool=1", "config.model.resnet.stem_pool: found '1', expected true or false"),
        ("model.resnet.blocks=3,x", "config.model.resnet.blocks: found 'x', expected an integer"),
        ("precision=fp16", "config.precision: found 'fp16', expected one of f32, bf16, f64; did you mean"),
        ("model=large", "config.model: found 'large' for a group of fields"),
        ("steps.x=1", "config.steps.x: steps is an integer and has no fields, found .x"),
        ("data.blocks.scene.rows=1", "blocks has no element scene; did you mean scenes?"),
        ("data.blocks.99.rows=1", "config.data.blocks.99.rows: blocks has no element 99"),
        ("data.blocks.0=1", "config.data.blocks.0: found '1' for a group of fields"),
        ("data.blocks=1", "config.data.blocks: found '1' for a group of fields"),
        ("model..width=1", "found an empty name in the path"),
    ],
)
def test_wrong_override_is_one_sentence(flag, sentence):
    with pytest.raises(ConfigError) as error:
        load(f"--config.{flag}")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UserError)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "--config: found none, expected --config=configs/<name>.py"),
        (["--config"], "--config: found no file after it"),
        (["--config=quickstart"], "--config: found 'quickstart', expected the path of a Python file"),
        ([f"--config={ROOT}/configs/quickstrat.py"], "did you mean quickstart.py?"),
        (["--config=nowhere/x.py"], "found no file nowhere/x.py; expected a file below the working directory"),
        ([f"--config={QUICKSTART}", f"--config={QUICKSTART}"], "found it twice"),
        ([f"--config={QUICKSTART}", "--config.steps", "3"], "--config.steps: found no value, expected --config.steps=<value>"),
        ([f"--config={QUICKSTART}:debgu"], "config argument 'debgu' is unknown; did you mean debug?"),
        ([f"--config={QUICKSTART}:steps"], "config argument 'steps': found no value, expected steps=<int>"),
        ([f"--config={QUICKSTART}:steps=x"], "config argument steps: found 'x', expected an integer"),
        ([f"--config={QUICKSTART}:debug=perhaps"], "config argument debug: found 'perhaps', expected true or false"),
    ],
)
def test_wrong_command_line_is_one_sentence(argv, sentence):
    with pytest.raises(ConfigError) as error:
        load_config(argv)
    assert sentence in str(error.value)


def test_mini_arguments_are_typed_by_their_defaults():
    assert parse_arg("", debug=False, size="tiny") == {"debug": False, "size": "tiny"}
    assert parse_arg("debug, size=base,rate=2", debug=False, size="tiny", rate=1.0) == {"debug": True, "size": "base", "rate": 2.0}


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("none", int | None, None),
        ("3", int | None, 3),
        ("1,a", tuple[int, str], (1, "a")),
        ("", tuple[int, ...], ()),
        ("2", Literal[1, 2], 2),
    ],
)
def test_optional_fixed_tuple_and_literal_types(text, kind, value):
    assert parse(text, kind, path="x") == value


def test_wrong_optional_and_wrong_tuple_length():
    with pytest.raises(ConfigError, match="x: found 'y', expected an integer or none"):
        parse("y", int | None, path="x")
    with pytest.raises(ConfigError, match="x: found '1'"):
        parse("1", tuple[int, int], path="x")


def test_a_config_anywhere_may_import_the_repositorys_configs(tmp_path):
    (tmp_path / "own-run 1.py").write_text(
        "from configs.quickstart import quickstart\n\n\ndef get_config(arg=''):\n    return quickstart(steps=5, name='own')\n"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'launch')!r}); sys.path.append({str(ROOT)!r})\n"
        "from ofa_jax.config.load import load_config\n"
        "config, rest = load_config(['x', '--config=own-run 1.py'])\n"
        "print(config.name, config.steps, rest)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "own 5 ['x']"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "found no function get_config"),
        ("def get_config(arg):\n    return {}\n", "get_config returned dict, expected a RunConfig"),
    ],
)
def test_a_file_that_is_no_config(tmp_path, text, sentence):
    path = tmp_path / "no_config.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load_config([f"--config={path}"])


def test_override_works_on_a_config_in_hand():
    assert override(load(), [("seed", "9")]).seed == 9
