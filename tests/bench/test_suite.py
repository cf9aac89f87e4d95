"""What the suite makes of measurements, and that it goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from ofa_jax.bench import suite
from ofa_jax.config.errors import UserError

OURS = {
    "device": "some chip",
    "sequences_s": 400.0,
    "median_s": 0.24,
    "of_matmul": 0.5,
    "peak_bytes": None,
    "program_bytes": 30e9,
    "mfu": 0.4,
}
FOUND = {
    "large": {
        "ofa_jax": OURS,
        "peer, as published": {"step_s": [0.5, 0.7, 0.6], "sequences": 96},
        "peer, tuned": {"step_s": [0.5], "sequences": 96},
    },
    "large text": {"ofa_jax": {name: value for name, value in OURS.items() if name != "mfu"}},
}


def test_the_table_has_ratios_beside_their_goals():
    _, _, large, text = suite.table(FOUND)
    assert large == "| large | some chip | 400.0 | 240.0 | 40.0% | 50.0% | 30.0 | 2.50 | 2.7 | 2.08 | 2.2 |"
    assert text == "| large text | some chip | 400.0 | 240.0 |  | 50.0% | 30.0 |  |  |  |  |"


def test_what_was_measured_is_not_measured_again_and_what_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "large.json").write_text(json.dumps(FOUND["large"]))
    wrong = suite.Measurement("large text", ("train", "--size=giant"))
    monkeypatch.setattr(suite, "MEASUREMENTS", (suite.MEASUREMENTS[0], wrong))
    flags = argparse.Namespace(only="", out=tmp_path, peer="")
    with pytest.raises(UserError, match=r"suite: 1 of 1 failed; large text ended with 2: ConfigError: --size: found giant"):
        suite.report(flags)
    assert "| large | some chip |" in (tmp_path / "table.md").read_text() and "giant" in (tmp_path / "large_text.txt").read_text()
    flags.only = "large"
    assert suite.report(flags).splitlines()[-1].startswith("| large | some chip |")


def test_commands_ask_for_the_peer_where_it_is_compared(tmp_path: Path):
    by_name = {one.name: one.command("python", tmp_path / "new.json") for one in suite.MEASUREMENTS}
    assert by_name["large"][-4:] == ["train", "--size=large", f"--json={tmp_path}/new.json", "--peer=python"]
    assert not any(word.startswith("--peer") for word in by_name["kernels"])
