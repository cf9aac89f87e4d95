"""Two evaluations beside each other, by the command that people run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from ofa_jax.eval.compare import compare
from tests.e2e.processes import ROOT


def write(folder: Path, scores: np.ndarray, **changes: str) -> Path:
    """A run's folder with one set of as many examples, two of each record."""
    folder.mkdir()
    (folder / "eval.json").write_text(json.dumps({"captions": {"cider": {"value": scores.mean()}, "bleu4": {}}}))
    line = {"set": "captions", "dataset": "scenes", "task": "captioning", "instruction": "what?", "reference": ["a dog"], **changes}
    lines = [json.dumps({**line, "record": f"r{i // 2}", "score": score}) for i, score in enumerate(scores.tolist())]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    spec = importlib.util.spec_from_file_location("compare_command", ROOT / "launch" / "compare.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = module.main([*map(str, words)])
    return code, *capsys.readouterr()


def test_what_both_find_hard_does_not_widen_the_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    hard = np.repeat(draw.normal(0, 3, 200), 2)
    first, second = hard + draw.normal(0, 0.1, 400), hard + 0.1 + draw.normal(0, 0.1, 400)
    one, other = write(tmp_path / "one", first), write(tmp_path / "other", second)
    [row] = compare(one, other)
    low, high = row.interval_95
    assert (row.name, row.metric, row.n) == ("captions", "cider", 400) and np.isclose(row.difference, (second - first).mean())
    spread = (second - first).reshape(200, 2).mean(1).std() / np.sqrt(200)  # of the mean over records
    assert np.allclose([low, high], [row.difference - 1.96 * spread, row.difference + 1.96 * spread], atol=0.1 * spread + 1e-3)
    assert 0 < low < row.difference < high and hard.std() / np.sqrt(200) > high - low
    code, said, _ = command(capsys, one, other, f"--out={tmp_path / 'table.md'}")
    assert code == 0 and said == (tmp_path / "table.md").read_text()
    assert f"| captions | cider | {first.mean():.3f} | {second.mean():.3f} | {row.difference:+.3f} |" in said


def test_other_examples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one", np.zeros(4))
    code, _, said = command(capsys, one, write(tmp_path / "other", np.zeros(4), instruction="who?"))
    assert code == 2 and "set captions: example 1: field instruction: found 'who?', expected 'what?' as in the first" in said
    assert "found 2 examples, expected 4" in command(capsys, one, write(tmp_path / "short", np.zeros(2)))[2]
    assert "--sets: found boxes, expected one that both evaluations have: captions" in command(capsys, one, one, "--sets=boxes")[2]
    assert "eval.json: found no such file, expected the results of launch/eval.py" in command(capsys, one, tmp_path / "none")[2]
