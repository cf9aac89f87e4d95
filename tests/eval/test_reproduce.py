"""Rows of the published tables: each resolves to what exists, refuses what would change it, and is measured by the real command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer

from launch import eval as launch_eval
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import read_config
from ofa_jax.config.published import DATA, ROWS, Figure, find_row
from ofa_jax.config.sizes import SIZES
from ofa_jax.eval.collect import task_of
from ofa_jax.eval.pinned import ROOT, list_rows, pin, wanted_digest
from ofa_jax.eval.scoring import METRICS
from ofa_jax.eval.ways import settings_of
from ofa_jax.metrics.meteor import JAR_VARIABLE
from ofa_jax.models import ofa
from ofa_jax.prepare import build_flags, fixtures
from ofa_jax.vocab.tokenizer import load_tokenizer

MEASURED = [row for row in ROWS.values() if not row.needs]
OTHERWISE = ("coco_caption/huge/", "coco_caption_reward/huge/", "vqa_v2_beam/")  # decoded in another way than their config says


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the closed sets that settings name."""
    folder = tmp_path_factory.mktemp("data")
    for dataset in ("vqa_v2", "imagenet"):
        (folder / dataset).mkdir()
        (folder / dataset / "answers.txt").write_text("yes\nno\n")
    return folder


def test_the_tables_are_whole():
    for task, columns in {
        "coco_caption": ("cider", "bleu4", "meteor"),
        "coco_caption_reward": ("cider", "bleu4", "meteor"),
        "vqa_v2": ("test-dev", "test-std"),
        "snli_ve": ("val", "test"),
        "refcoco": ("val", "testA", "testB"),
        "refcoco_plus": ("val", "testA", "testB"),
        "refcocog": ("val-u", "test-u"),
    }.items():
        assert {f"{task}/{size}/{column}" for size in set(SIZES) - {"nano"} for column in columns} <= set(ROWS)
    values = {name: [f.value for f in ROWS[name].figures] for name in ROWS}
    assert values["refcoco/large/testA"] == [92.93] and values["refcoco_plus/huge/testB"] == [80.71]
    assert values["refcocog/medium/val-u"] == [78.76] and values["snli_ve/tiny/test"] == [85.2]
    assert values["vqa_v2/large/test-std"] == [80.7, 80.02, 80.67, 80.5]
    assert values["coco_caption_reward/large/cider"] == [150.7, 149.6] and values["coco_caption_reward/medium/cider"] == [140.3, 140.7]
    assert values["vqa_v2_beam/large/test-dev"] == [79.36] and values["gigaword/large/rouge_l"] == [36.43, 37.11]


@pytest.mark.parametrize("row", MEASURED, ids=[row.name for row in MEASURED])
def test_a_row_resolves_to_what_exists(row, data):
    pinned = pin(row.name, [("data.dir", str(data))])
    assert pinned.config.eval.sets == (row.eval_set,) and not pinned.is_debug
    assert pinned.config.name.endswith(f"_{row.name.split('/')[1]}")
    (setting,) = settings_of(pinned.config)  # as it will run
    task = task_of(row.eval_set)
    assert task.scoring == "free" and not setting.tasks and (not setting.answers or task.output == "text")
    assert row.metric in METRICS if not row.leaderboard else not row.metric
    assert row.metric in (*task.metrics, "meteor", "vqa_accuracy", "")
    low, high = row.band
    assert low < row.figures[0].value < high and row.margin > 0
    own = read_config(f"{ROOT / row.config}:{row.arg}")
    assert (own.eval.decode == (row.decode.replace(DATA, own.data.dir),)) != row.name.startswith(OTHERWISE)
    assert (row.eval_set in own.eval.sets) != bool(row.leaderboard)  # of sets without labels only files are made
    small = pin(f"{row.name}:debug")
    assert small.is_debug and small.metric in METRICS and small.eval_set.task == row.eval_set.task
    settings_of(small.config)


@pytest.mark.parametrize("command", sorted({row.data for row in ROWS.values()}))
def test_the_command_that_prepares_a_row_makes_its_split(command, tmp_path):
    parser = argparse.ArgumentParser()
    build_flags.add_commands(parser.add_subparsers(dest="command"))
    words = shlex.split(command.replace(DATA, str(tmp_path)))
    assert words[:2] == ["python", "launch/prepare.py"]
    layout = build_flags.build_options(parser.parse_args(words[2:])).layout
    for row in (row for row in ROWS.values() if row.data == command):
        assert layout.dataset == row.eval_set.dataset
        if getattr(layout, "splits", ()):
            assert row.eval_set.split in [split.partition("=")[0] for split in layout.splits]


def test_a_band_is_of_what_is_certain():
    assert ROWS["coco_caption_reward/large/cider"].band == (147.1, 153.2)  # both are certain: 149.6 and 150.7
    assert ROWS["vqa_v2/large/test-dev"].band == (79.37, 80.9)  # without the paper's, from memory
    assert ROWS["glue/large/sst2"].band == (96.1, 97.1) and ROWS["glue/large/sst2"].figures[0].kind == "unverified"
    assert Figure(144.50, "independent", "") not in ROWS["coco_caption_reward/base/cider"].figures
    assert ROWS["coco_caption_reward/base/cider"].band[0] == 143.9  # of 146.4 and 146.7, not of somebody else's 144.5


def test_metrics_times_their_scale_are_what_is_published():
    """Published captions are pycocoevalcap's scores times 100: its CIDEr-D of 1.507 is 150.7."""
    texts = ["a dog sits under a tree", "two cats look at a hat", "a man with a red ball"]
    references = [["a dog under a tree", "the dog sits by a tree"], ["two cats and a hat", "cats see a hat"], ["a man plays", "a red ball"]]
    cider, bleu = CiderScorer(n=4, sigma=6.0), BleuScorer(n=4)
    for text, refs in zip(texts, references, strict=True):
        cider += (text, refs)
        bleu += (text, refs)
    for column, published in (("cider", cider.compute_score()[0] * 100), ("bleu4", bleu.compute_score(option="closest")[0][3] * 100)):
        row = ROWS[f"coco_caption/base/{column}"]
        assert METRICS[row.metric](texts, references, []).value * row.scale == pytest.approx(published, rel=1e-6)
    assert {row.scale for row in MEASURED} == {100.0}


def test_an_unknown_row_names_the_near_ones_and_the_form_of_all():
    with pytest.raises(ConfigError, match="did you mean refcoco/large/test[AB]") as error:
        find_row("refcoco/large/testC")
    assert "snli_ve/(tiny|medium|base|large|huge)/(val|test)" in str(error.value) and "\n" not in str(error.value)
    lines = list_rows().splitlines()
    assert [line.split()[0] for line in lines[1 : len(ROWS) + 1]] == list(ROWS)
    assert "150.7 149.6r" in next(line for line in lines if line.startswith("coco_caption_reward/large/cider "))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--reproduce=refcoco/large/testC"], "found the row 'refcoco/large/testC'; did you mean"),
        (["--reproduce=refcoco/large/testA:own"], "found 'own' behind the colon, expected debug"),
        (
            ["--reproduce=image_generation/large/fid"],
            "found a row that no command here gives alone, expected another: it needs",
        ),
        (
            ["--reproduce=refcoco/large/testA", "--decode=greedy"],
            "--decode=greedy: found it with --reproduce=refcoco/large/testA, which",
        ),
        (
            ["--reproduce=refcoco/large/testA", "--sets=a"],
            "--sets=a: found it with --reproduce=refcoco/large/testA, which pins config,",
        ),
        (["--reproduce=refcoco/large/testA", "--config=a.py"], "--config=a.py: found it with --reproduce=refcoco/large/testA, which names"),
        (
            ["--reproduce=refcoco/large/testA", "--config.eval.decode=greedy"],
            "--config.eval.decode=greedy: found it with --reproduce=refcoco/large/testA, which pins it, expected nothing but data.dir",
        ),
        (["--reproduce=refcoco/large/testA", "--config.data.blocks.referring.image_px=384"], "image_px=384: found it with --reproduce="),
        (["--reproduce=refcoco/large/testA", "--config.model.width=8"], "--config.model.width=8: found it with --reproduce="),
        (["--reproduce=refcoco/large/testA", "--checkpoint=a", "--checkpoint=b"], "--checkpoint: found 2 of them"),
        (["--reproduce=refcoco/large/testA", "--submission"], "--submission: found it with --reproduce=refcoco/large/testA, whose labels"),
        (["--reproduce=refcoco/large/testA", "--digest=0123"], "--digest=0123: found '0123', expected a file that is there or 12 to 64"),
        (["--reproduce=refcoco/large/testA", "--step=x"], "--step: invalid int value"),
        (["--reproduce=refcoco/large/testA", "--config.workdir={tmp}"], "found no complete checkpoint; run python launch/train.py"),
    ],
)
def test_mistakes_are_one_sentence(flags, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch_eval.main(["launch/eval.py", *(flag.format(tmp=tmp_path) for flag in flags)]) == launch_eval.EXIT_MISTAKE
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_digest_is_read_from_a_file_by_row(tmp_path):
    pinned, digest = pin("refcoco/tiny/val"), "0123456789abcdef" * 4
    path = tmp_path / "pins.json"
    path.write_text(json.dumps({"refcoco/tiny/val": digest}))
    assert wanted_digest(pinned, str(path)) == (digest, str(path))
    path.write_text(json.dumps({"refcoco/tiny/val": {"value": 80.2, "checkpoint": {"digest": digest}}}))
    assert wanted_digest(pinned, str(path)) == (digest, str(path))
    assert wanted_digest(pinned, digest[:12]) == (digest[:12], "--digest") and wanted_digest(pinned, "") == ("", "")
    of_row = dataclasses.replace(pinned, row=dataclasses.replace(pinned.row, digest=digest))
    assert wanted_digest(of_row, "") == wanted_digest(of_row, digest[:12]) == (digest, "the row")
    with pytest.raises(ConfigError, match=f"found {'f' * 12} for refcoco/tiny/val, expected {digest}, which the row itself pins"):
        wanted_digest(of_row, "f" * 12)
    for content, sentence in (
        ("{", "found what is no JSON"),
        ('{"refcoco/tiny/testA": "a"}', "found refcoco/tiny/testA, expected the row refcoco/tiny/val among them"),
        ('{"refcoco/tiny/val": {"checkpoint": {"digest": ""}}}', "refcoco/tiny/val: found '', expected a file"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=sentence):
            wanted_digest(pinned, str(path))


ROW = "refcoco/tiny/testA"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with fixtures and with the run of the row, whose one checkpoint is drawn."""
    folder = tmp_path_factory.mktemp("reproduce")
    data = fixtures.write(folder / "data" / "fixtures")
    config = pin(f"{ROW}:debug").config
    params = jax.jit(lambda key: ofa.create(config.model, config.vocab, key)[1])(jax.random.key(0))
    manager, zero = CheckpointManager(folder / "runs" / config.name), jnp.zeros((), jnp.int32)
    state = {"params": params, "stats": ofa.init_stats(config.model), "step": zero, "data_step": zero}
    vocab = config.vocab.__class__(**{**vars(config.vocab), "path": str(data / "tokenizer.model")})
    manager.save(0, state, config=config, identity={"tokenizer": load_tokenizer(vocab).digest}, wait=True)
    manager.close()
    return folder, manager.directory.parent, manager.digest(0)


@pytest.fixture
def reproduce(run, monkeypatch, capsys):
    """Runs the command in the folder and returns its exit code and what it said."""
    monkeypatch.chdir(run[0])
    progress = logging.getLogger("ofa_jax.eval")
    before, cache = list(progress.handlers), jax.config.jax_compilation_cache_dir

    def command(*flags):
        code = launch_eval.main(["launch/eval.py", *flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield command
    progress.handlers = before
    jax.config.update("jax_compilation_cache_dir", cache)


def test_a_row_is_measured_and_kept_with_the_command_that_does_it_again(run, reproduce):
    _, folder, digest = run
    code, out, err = reproduce(f"--reproduce={ROW}:debug")
    assert code == 0, err
    assert "the numbers mean nothing" in out and "84.07 % (table: README of OFA-Sys/OFA" in out and digest in out
    kept = json.loads((folder / "reproduced.json").read_text())[f"{ROW}:debug"]
    assert kept["checkpoint"]["digest"] == digest and kept["checkpoint"]["step"] == 0 and kept["within"] is None
    assert kept["n"] == 8 and kept["value"] == pytest.approx(100 * kept["ours"], abs=1e-4)
    assert kept["interval_95"][0] <= kept["value"] <= kept["interval_95"][1] and kept["band"] == [83.57, 84.57]
    assert kept["decode"] == "beam:beam,beam=5,no_repeat_ngram=3" and kept["prompt"] == "none" and kept["image_px"] == 64
    assert len((folder / "reproduced" / "refcoco-tiny-testA-debug.predictions.jsonl").read_text().splitlines()) == 8
    table = (folder / "reproduced.md").read_text().splitlines()
    assert len(table) == 3 and table[2].startswith(f"| {ROW}:debug | ") and digest[:12] in table[2]
    words = shlex.split(kept["command"])
    assert words[:2] == ["python", "launch/eval.py"] and words[-1] == f"--digest={digest}"


def test_another_checkpoint_is_refused_before_anything_is_computed(run, reproduce):
    folder, run_folder, digest = run
    code, _, err = reproduce(f"--reproduce={ROW}:debug", "--digest=0123456789ab")
    assert code == launch_eval.EXIT_MISTAKE
    assert f"found the digest {digest}, expected 0123456789ab, which --digest pins for {ROW}:debug: another one" in err
    code, _, err = reproduce(f"--reproduce={ROW}", f"--checkpoint={Path('runs') / run_folder.name}")
    assert code == launch_eval.EXIT_MISTAKE and "model.width: found 64, expected 256, that of refcoco/tiny/testA: another size" in err
    other = folder / "other.model"
    other.write_bytes((folder / "data" / "fixtures" / "tokenizer.model").read_bytes() + b"\x1a\x00")
    code, _, err = reproduce(f"--reproduce={ROW}:debug", f"--config.vocab.path={other}")
    assert code == launch_eval.EXIT_MISTAKE and "found the tokeniser" in err and "expected that of the checkpoint" in err


def test_a_metric_that_cannot_run_is_found_before_anything_is_decoded(run, reproduce, monkeypatch):
    monkeypatch.setenv(JAR_VARIABLE, "none.jar")
    code, _, err = reproduce("--reproduce=coco_caption/tiny/meteor:debug", f"--checkpoint={run[1]}")
    assert code == launch_eval.EXIT_MISTAKE and "metric meteor: found no file none.jar" in err
    assert "short_captioning" not in err  # it had not begun
