"""The command line: mistakes are one sentence and exit code 2; a traceback only when asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch import train
from ofa_jax.config.errors import UserError
from ofa_jax.monitor.exits import REASONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config: found none"),
        (["--config=configs/quickstrat.py"], "did you mean quickstart.py"),
        (["--config=configs/quickstart.py", "--config.steps=many"], "config.steps"),
        (["--config=configs/quickstart.py", "--speed=2"], "command line: found --speed=2"),
        (["--config=configs/quickstart.py", "--config.model.num_heads=3"], "model.num_heads"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert train.main(["launch/train.py", *arguments]) == REASONS["config"].code
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    with pytest.raises(UserError):
        train.main(["launch/train.py", *arguments, "--traceback"])


def test_a_save_that_hangs_does_not_keep_the_process(tmp_path):
    """Python waits for threads at its end, and those of a save that hangs end never."""
    program = f"""
import sys, threading
sys.path.insert(0, {str(ROOT)!r})
from launch import train
from ofa_jax.config.errors import HungSaveError
def hang(argv, life):
    threading.Thread(target=threading.Event().wait).start()
    raise HungSaveError("the save of step 3 is not done")
train._train = hang
sys.exit(train.main(["launch/train.py"]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (REASONS["checkpoint"].code, "HungSaveError: the save of step 3 is not done\n")


def test_the_script_runs_from_anywhere(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "train.py"), "--config=nowhere.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == REASONS["config"].code
    assert done.stderr.startswith("ConfigError: --config: found no file nowhere.py")
    assert "Traceback" not in done.stderr
