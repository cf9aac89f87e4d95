"""What launch/eval.py says when it cannot start; what it does is tested by the runner's tests and the quickstart."""

import pytest

from launch import eval as launch_eval
from ofa_jax.config.errors import ConfigError
from ofa_jax.eval.plain import named_checkpoint

CONFIG = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--config: found none"),
        ([CONFIG, "--speed=3"], "command line: unrecognized arguments: --speed=3; expected --config=FILE"),
        ([CONFIG, "--step=x"], "--step: invalid int value"),
        ([CONFIG, "--sets=a"], "--sets: found 'a', expected some of"),
        ([CONFIG, "--reference=a.json"], "--reference: found a.json without --submission, expected both"),
        ([CONFIG, "--checkpoint={tmp}"], "found no complete checkpoint; run python launch/train.py with the same --config first"),
    ],
)
def test_mistakes_are_one_sentence(flags, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(launch_eval.Path(__file__).resolve().parents[2])
    assert launch_eval.main(["launch/eval.py", *(flag.format(tmp=tmp_path) for flag in flags)]) == launch_eval.EXIT_MISTAKE
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_may_be_a_run_its_folder_or_one_step(tmp_path):
    default = tmp_path / "default"
    run = tmp_path / "run"
    assert named_checkpoint(None, default, 7) == (default, 7)
    assert named_checkpoint(str(run), default, None) == (run, None)
    assert named_checkpoint(str(run / "checkpoints"), default, 5) == (run, 5)
    assert named_checkpoint(str(run / "checkpoints" / "500"), default, None) == (run, 500)
    with pytest.raises(ConfigError, match="--step: found 3, expected 500"):
        named_checkpoint(str(run / "checkpoints" / "500"), default, 3)
