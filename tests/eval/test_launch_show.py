"""launch/show.py as a person runs it: pages of debug configs by a real process, and what it says when it cannot start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import show

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=configs/quickstart.py"


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "show.py"), *flags], cwd=folder, env=os.environ, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("show")


def test_a_debug_config_makes_its_data_and_a_page(folder: Path):
    done = run(folder, f"--config={ROOT}/configs/quickstart.py:debug", "--step=3")
    assert done.returncode == 0, done.stderr
    page = folder / "runs" / "quickstart_debug" / "show_3.html"
    assert f"{page.relative_to(folder)}: 48 of 48 rows" in done.stdout and "step 3 (data_step 2): digest " in done.stdout
    text = page.read_text()
    assert "quickstart_debug: batch of step 3" in text and "detection" in text
    out = folder / "elsewhere.html"
    done = run(folder, f"--config={ROOT}/configs/quickstart.py:debug", "--data_step=2", "--task=detection", "--rows=2", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "2 of 48 rows" in done.stdout
    assert text[text.index("Digest") :][:60] == out.read_text()[out.read_text().index("Digest") :][:60]


def test_more_rows_than_a_page_holds(folder: Path):
    rows = ["--config.data.blocks.prose.rows=400", "--rows=0"]
    done = run(folder, f"--config={ROOT}/configs/quickstart.py:debug", "--step=1", *rows, f"--out={folder / 'many.html'}")
    assert done.returncode == 0, done.stderr
    assert f"page 2 of 2: {folder / 'many-2.html'}" in done.stdout
    assert done.stdout.splitlines()[-1] == f"{folder / 'many.html'} and 1 more page: 440 of 440 rows"
    assert (folder / "many-2.html").read_text().count("<div class=row>") == 40


def test_a_vqgan_shows_pictures(folder: Path):
    done = run(folder, f"--config={ROOT}/configs/vqgan_f8.py:debug", "--step=1", "--dataset=scenes")
    assert done.returncode == 0, done.stderr
    assert "8 of 8 rows" in done.stdout


def test_missing_data_is_one_sentence(tmp_path: Path):
    done = run(tmp_path, f"--config={ROOT}/configs/quickstart.py", "--step=3")
    assert done.returncode == show.EXIT_MISTAKE
    assert done.stderr.startswith("DataError: data directory data/quickstart does not exist") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--config: found none"),
        ([CONFIG], "--step: found neither or both of --step and --data_step"),
        ([CONFIG, "--step=1", "--data_step=0"], "--step: found neither or both"),
        ([CONFIG, "--step=0"], "--step: found a step before the first, expected --step=1 or more"),
        ([CONFIG, "--step=x"], "--step: invalid int value"),
        ([CONFIG, "--step=3", "--speed=3"], "unrecognized arguments: --speed=3; expected --config=FILE"),
        ([CONFIG, "--step=3", "--task=vqq"], "did you mean vqa?"),
    ],
)
def test_mistakes_are_one_sentence(flags, sentence, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert show.main(["launch/show.py", *flags]) == show.EXIT_MISTAKE
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
