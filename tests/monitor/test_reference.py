"""Bands of losses: what they are made of, where a run is, and the command that makes one."""

import json

import pytest

from launch import reference as command
from ofa_jax.config.errors import ConfigError
from ofa_jax.monitor.reference import make_band, read_band, say


def records(factor=1.0, *, steps=range(10, 210, 10)):
    """A loss that falls as 100 / step, and the loss of a task at every second record."""
    return [
        {"step": step, "loss/total": factor * 100 / step, **({"loss/nll/vqa": factor * 50 / step} if step % 20 == 0 else {})}
        for step in steps
    ] + [{"step": steps[-1], "eval/cider": 1.0}]


def band_of(tmp_path, *runs, **options):
    path = tmp_path / "band.json"
    path.write_text(json.dumps(make_band(runs, **options)))
    return read_band(path)


def test_one_run_gives_its_losses_less_and_more_the_tolerance(tmp_path):
    band = band_of(tmp_path, records(), tolerance=0.2)
    low, high = band.bounds("loss/total", 100)
    mean = sum(100 / step for step in (80, 90, 100, 110, 120)) / 5
    assert (low, high) == pytest.approx((0.8 * mean, 1.2 * mean), rel=1e-4)
    assert band.bounds("loss/total", 10) == pytest.approx((8.0, 12.0))  # nothing before it: the step alone
    low, high = band.bounds("loss/total", 105)  # between two records
    assert band.bounds("loss/total", 110)[0] < low < band.bounds("loss/total", 100)[0]
    assert band.bounds("loss/total", 9) is band.bounds("loss/total", 201) is band.bounds("eval/cider", 100) is None


def test_several_runs_give_their_lowest_and_highest(tmp_path):
    band = band_of(tmp_path, records(), records(1.5), tolerance=0.2)
    assert band.bounds("loss/total", 100) == pytest.approx((100 / 120, 150 / 80), rel=1e-4)
    assert band.compare({"step": 100, "loss/total": 1.2, "loss/nll/vqa": 0.2, "eval/cider": 3.0}) == {
        "reference/loss/total": 0.0,
        "reference/loss/nll/vqa": pytest.approx((0.2 - 50 / 140) / (50 / 140), rel=1e-4),
    }
    behind = band.compare({"step": 100, "loss/total": 3.75})["reference/loss/total"]
    assert (say(behind), say(0.0), say(-0.25)) == ("100.0 % behind the band", "within the band", "25.0 % ahead of the band")
    assert band.compare({"step": 100, "loss/total": float("nan")}) == {} == band.compare({"step": 100, "loss/total": None})


def test_long_runs_are_thinned_but_keep_their_ends(tmp_path):
    band = make_band([records(steps=range(10, 50_010, 10))], tolerance=0.1)
    steps = [row[0] for row in band["curves"]["loss/total"]]
    assert len(steps) == 200 and (steps[0], steps[-1]) == (10, 50_000)


def test_the_command_makes_a_band_of_run_folders(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = [json.dumps(record) for record in records(1.0 if name == "a" else 1.1)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 999, "lo')
    out = tmp_path / "kept" / "band.json"
    assert command.main(["launch/reference.py", str(tmp_path / "a"), str(tmp_path / "b" / "metrics.jsonl"), f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 curves, 30 points, of 2 run(s)\n"
    assert read_band(out).bounds("loss/total", 200) == pytest.approx((0.5, 0.55))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required"),
        (["nowhere", "--out=b.json"], "metrics: found no file nowhere"),
        (["nowhere", "--out=b.json", "--tolerance=2"], "--tolerance: found 2, expected more than 0 and less than 1"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, capsys):
    assert command.main(["launch/reference.py", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "found no JSON"),
        ("[]", "field format: found list, expected 1"),
        ('{"format": 2}', "field format: found 2, expected 1"),
        ('{"format": 1, "curves": {"loss/total": [[1, 2]]}}', "curve loss/total: expected rows of step, low, high"),
        ('{"format": 1, "curves": {"loss/total": [[2, 1, 1], [1, 1, 1]]}}', "with ascending steps"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "band.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="reference band .*band.json") as error:
        read_band(path)
    assert words in str(error.value)


def test_runs_without_losses_make_no_band():
    with pytest.raises(ConfigError, match="found no record with a loss"):
        make_band([[{"step": 1, "eval/cider": 1.0}]], tolerance=0.1)
