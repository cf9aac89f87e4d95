"""Every run in `configs/` is loaded, checked and compared with its golden text, so that a changed default shows up in review.

After a change that is meant, write the golden files again and read their diff:

    .venv/bin/python tests/config/test_golden_configs.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

from ofa_jax.config.check import check  # noqa: E402
from ofa_jax.config.load import read_config  # noqa: E402
from ofa_jax.config.render import config_hash, diff, from_json, leaves, render, to_json  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "configs"
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
# A pretraining config is read whole in review. The quickstart evaluates eight tasks on four splits and has a block a task kind.
MAX_LEAVES = {"quickstart": 190, "quickstart_long": 190}


def _golden(name: str, config) -> str:
    return f"# {config_hash(config)}\n{render(config)}"


@pytest.mark.parametrize("name", NAMES)
def test_config_equals_its_golden_text(name: str):
    config = read_config(str(ROOT / "configs" / f"{name}.py"))
    assert _golden(name, config) == (GOLDEN / f"{name}.txt").read_text()


def test_no_golden_file_is_left_over():
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arg", ["", ":debug", ":debug,steps=10"])
def test_config_passes_the_checks_and_survives_json(name: str, arg: str):
    config = read_config(f"{ROOT / 'configs' / name}.py{arg}")
    check(config)
    if "debug" in arg:
        check(config, num_devices=1)
        check(config, num_devices=8)
        assert config.steps == (10 if "steps" in arg else 2)
    assert from_json(to_json(config)) == config
    assert diff(config, from_json(to_json(config))) == []


@pytest.mark.parametrize("name", NAMES)
def test_config_has_few_leaves(name: str):
    config = read_config(str(ROOT / "configs" / f"{name}.py"))
    assert len(leaves(config)) <= MAX_LEAVES.get(name, 170)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ofa_")])
@pytest.mark.parametrize(
    ("num_devices", "arg"), [(1, ""), (8, ""), (64, ""), (128, "shards=128"), (256, "shards=256"), (512, "batch=2,shards=512")]
)
def test_pretraining_batches_share_evenly(name: str, num_devices: int, arg: str):
    check(read_config(str(ROOT / "configs" / f"{name}.py") + (f":{arg}" if arg else "")), num_devices=num_devices)


def write() -> None:
    """Writes every golden file again and removes those without a config."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for path in GOLDEN.glob("*.txt"):
        path.unlink()
    for name in NAMES:
        (GOLDEN / f"{name}.txt").write_text(_golden(name, read_config(str(ROOT / "configs" / f"{name}.py"))))


if __name__ == "__main__":
    write()
