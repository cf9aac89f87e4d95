"""Sweeps over real checkpoints of the tiny world: every point once, resumed where interrupted, computed again when something changed."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.decoding import GREEDY, DecodeSetting, SweepConfig, check_settings, parse_setting
from ofa_jax.config.errors import CheckpointError, ConfigError
from ofa_jax.eval import runner, sweep
from ofa_jax.eval.points import Checkpoint, find_checkpoints
from ofa_jax.eval.sweep_table import format_rows
from ofa_jax.eval.world import World
from ofa_jax.models import ofa
from ofa_jax.tasks.base import Negatives
from ofa_jax.tasks.table import TASK_NAMES

SETTINGS = (
    GREEDY,
    DecodeSetting("beam", method="beam", beam=3, lenpen=0.7, no_repeat_ngram=3, tasks=("captioning", "grounding", "vqa")),
    DecodeSetting("answers", method="score", answers="training", tasks=("vqa", "matching")),
    DecodeSetting("prompted", method="score", answers="training", prompt="source", tasks=("vqa",)),
    DecodeSetting("trie", method="beam", answers="training", prompt="source", normalise=False, tasks=("vqa",)),
    DecodeSetting("drawn", method="sample", beam=2, top_k=5, max_len=6, tasks=("captioning",), scorer=f"{__file__}:longest"),
)
SETS = ("captioning/scenes", "matching/scenes", "grounding/scenes", "vqa/scenes", "image_infilling/scenes")


def longest(instruction, picture, predictions):
    """A scorer of hypotheses."""
    assert "describe" in instruction and picture.shape == (32, 32, 3)
    return [len(text) for text in predictions]


@pytest.fixture(scope="module")
def checkpoints(config, tmp_path_factory):
    """Two checkpoints of two runs with weights of different draws."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "second")):
        params = jax.jit(lambda key: ofa.create(config.model, config.vocab, key)[1])(jax.random.key(seed))
        manager = CheckpointManager(folder / name)
        zero = jnp.zeros((), jnp.int32)
        manager.save(
            0, {"params": params, "stats": ofa.init_stats(config.model), "step": zero, "data_step": zero}, config=config, wait=True
        )
        manager.close()
    return find_checkpoints([folder / "first", folder / "second"])


@pytest.fixture(scope="module")
def world(config, tokenizer, build_row, open_source):
    answers = {"count": ("1", "2", "3"), "object": ("cat", "dog", "tree")}
    return World(config, tokenizer, build_row, open_source, {"scenes": Negatives(answers=answers), "prose": Negatives()})


def run(world, checkpoints, out, *, settings=SETTINGS, sets=SETS, progress=lambda line: None, render=False):
    return sweep.run_sweep(world, SweepConfig(settings, sets=sets), checkpoints=checkpoints, out=out, progress=progress, render=render)


@pytest.fixture(scope="module")
def whole(world, checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    return out, run(world, checkpoints, out)


def test_every_point_is_there_once(whole, checkpoints):
    out, rows = whole
    found = {(row["checkpoint"], row["set"], row["decode"]) for row in rows}
    expected = {
        "captioning/scenes": ("greedy", "beam", "drawn"), "matching/scenes": ("greedy", "answers"), "grounding/scenes": ("greedy", "beam"),
        "vqa/scenes": ("greedy", "beam", "answers", "prompted", "trie"), "image_infilling/scenes": ("forced",),
    }  # fmt: skip
    assert found == {(c.name, name, setting) for c in checkpoints for name, settings in expected.items() for setting in settings}
    assert json.loads((out / "sweep.json").read_text()) == rows
    with open(out / "sweep.csv", newline="") as file:
        assert [(r["set"], float(r["value"])) for r in csv.DictReader(file)] == [(r["set"], r["value"]) for r in rows]
    table = (out / "sweep.md").read_text().splitlines()
    assert table[0].split(" | ")[3:6] == ["greedy", "beam", "drawn"] and "first@0" in table[2]
    assert "first@0" in format_rows(rows)


def test_predictions_are_typed_lines_of_every_example(whole):
    out, rows = whole
    counts = {}
    for path in out.glob("points/*.predictions.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            assert {"checkpoint", "decode", "set", "record", "instruction", "prediction", "reference", "score"} <= set(line)
            assert ("log_prob" in line) == (line["decode"] in ("answers", "prompted"))
            assert ("hypothesis_score" in line) == (line["decode"] in ("beam", "trie", "drawn"))
            assert line.get("scorer_score") == (len(line["prediction"]) if line["decode"] == "drawn" else None)
            key = line["checkpoint"], line["set"], line["decode"]
            counts[key] = counts.get(key, 0) + 1
            if line["decode"] in ("answers", "prompted", "trie"):
                assert line["prediction"] in (("yes", "no") if line["task"] == "matching" else ("1", "2", "3", "cat", "dog", "tree"))
    assert counts == {(row["checkpoint"], row["set"], row["decode"]): row["n"] for row in rows}


def test_greedy_is_the_plain_evaluation(whole, world, checkpoints, config):
    params = CheckpointManager(checkpoints[0].folder, read_only=True)
    graphdef, abstract = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, jax.random.key(0)))
    restored = params.restore_params(abstract, jax.eval_shape(lambda: ofa.init_stats(config.model)))
    plain = runner.evaluate(
        config, graphdef=graphdef, params=restored.params, stats=restored.stats, tokenizer=world.tokenizer, build_row=world.build_row,
        open_source=world.open_source, sets=runner.chosen_sets(config, SETS), with_pictures=False,
    )  # fmt: skip
    for row in whole[1]:
        if row["checkpoint"] == "first@0" and row["decode"] in ("greedy", "forced"):
            assert row["value"] == plain.results[row["set"]][row["metric"]]["value"], row


@pytest.mark.full
def test_an_interrupted_sweep_goes_on_and_ends_alike(whole, world, checkpoints, tmp_path):
    computed = []

    def stop_at(number):
        def progress(line):
            if " points)" in line:
                computed.append(line.split(":")[0])
                if len(computed) == number:
                    raise KeyboardInterrupt

        return progress

    # Two of the settings and sets: every start compiles its programs anew.
    part = {"settings": (GREEDY, SETTINGS[2]), "sets": ("matching/scenes", "image_infilling/scenes")}
    for number in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            run(world, checkpoints, tmp_path, progress=stop_at(number), **part)
    rows = run(world, checkpoints, tmp_path, progress=stop_at(-1), **part)
    assert len(computed) == len(set(computed)) == 6  # no point twice
    assert rows == [row for row in whole[1] if row["set"] in part["sets"]]
    for path in tmp_path.glob("points/*"):
        assert (whole[0] / "points" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.full
def test_what_changed_is_computed_again(whole, world, checkpoints, tmp_path):
    sets, settings = ("vqa/scenes",), (GREEDY, dataclasses.replace(SETTINGS[1], tasks=()))

    def computed(settings, **changes):
        said = []
        changed = dataclasses.replace(world, **changes)
        run(changed, checkpoints[:1], tmp_path, settings=settings, sets=sets, progress=said.append)
        return [line.split(":")[0].split("/")[-1] for line in said if " points)" in line]

    assert computed(settings) == ["greedy", "beam"]
    assert computed(settings) == []
    assert computed((settings[0], dataclasses.replace(settings[1], lenpen=2.0))) == ["beam"]
    path = next(tmp_path.glob("points/*greedy*.predictions.jsonl"))
    path.unlink()
    assert computed(settings) == ["greedy", "beam"]


def test_an_unscored_label_set_is_named(world, checkpoints, tmp_path):
    def refused(lines, sentence, **changes):
        path = tmp_path / "labels.txt"
        path.write_text(lines)
        setting = dataclasses.replace(DecodeSetting("s", method="score", answers=str(path)), **changes)
        with pytest.raises(ConfigError, match=sentence):
            run(world, checkpoints[:1], tmp_path / "out", settings=(setting,), sets=("vqa/scenes",))

    refused("", "labels.txt: found no label, expected at least one")
    refused("cat\n \ndog\n", "line 2: found an empty label")
    refused("cat\ndog\ncat\n", "found 'cat' more than once")
    refused("cat\n" + "tree " * 50 + "\n", r"tokens, expected at most 40, the length of outputs")
    refused("cat\n", "decode s: answers: found no file nothing.txt", answers="nothing.txt")
    with pytest.raises(ConfigError, match="answers=training for set captioning/scenes: found no training answers for task captioning"):
        run(world, checkpoints[:1], tmp_path / "out", settings=(dataclasses.replace(SETTINGS[2], tasks=()),), sets=("captioning/scenes",))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bea", "--decode=bea: method: found 'bea'"),
        ("a:beam,beams=3", "found 'beams=3', expected field=value; did you mean beam"),
        ("a:beam,beam=x", "beam: found 'x', expected an integer"),
        ("a:beam,beam=0", "decode a: beam: found 0, expected at least 1"),
        ("a:beam,tasks=vqa+singing", "decode a: tasks: found 'singing'"),
        ("a:score", "decode a: answers: found nothing"),
        (
            "a:greedy,answers=training",
            "decode a: answers: found 'training' with method greedy, which does not read it, expected it with beam",
        ),
        ("a:greedy,beam=2", "decode a: beam: found 2 with method greedy"),
        ("a:beam,beam=1,temperature=2", "decode a: temperature: found 2.0 with one hypothesis, which it does not change"),
        ("a:sample,beam=1,scorer=x.py:f", "decode a: scorer: found it with a beam of 1"),
        ("a:sample,seed=4294967296", "decode a: seed: found 4294967296, expected at most 4294967295"),
        ("a:beam,top_k=3", "decode a: top_k: found 3 with method beam"),
        ("a:beam,max_len=2,min_len=3", "decode a: min_len: found 3, expected at most max_len=2"),
        ("a/b:beam", "found the name 'a/b', expected letters"),
    ],
)
def test_wrong_settings_are_one_sentence(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_settings((parse_setting(text),), task_names=TASK_NAMES)


def test_settings_and_checkpoints_are_told_apart(checkpoints, tmp_path):
    assert parse_setting("wide:beam,beam=20,lenpen=0.7,tasks=vqa+captioning") == DecodeSetting(
        "wide", method="beam", beam=20, lenpen=0.7, tasks=("vqa", "captioning")
    )
    with pytest.raises(ConfigError, match="decode greedy: found the name 2 times"):
        check_settings((GREEDY, GREEDY), task_names=TASK_NAMES)
    with pytest.raises(CheckpointError, match="found no complete checkpoint, expected a run's folder"):
        find_checkpoints([tmp_path])
    step = checkpoints[0].folder / "checkpoints" / "0"
    assert find_checkpoints([step, checkpoints[0].folder]) == checkpoints[:1]


class Sent(Exception):
    """A host that has sent its part waits for the other."""


def send(parts, content):
    parts.append(content)
    raise Sent


@pytest.mark.full
def test_hypotheses_keep_their_order_over_hosts(world, checkpoints, config, monkeypatch):
    """Two hosts, one after the other in this process: each decodes its share, and the parts are joined in the examples' order.

    What is drawn for an example and how it is ranked does not depend on the host or the batch.
    """
    predictor = sweep._Models(config).predictor(checkpoints[0])
    wide = predictor.with_params(predictor._params, predictor._stats)
    wide._batch_rows = 8  # other batches than the six of the config
    for name, setting in (("vqa/scenes", SETTINGS[1]), ("captioning/scenes", SETTINGS[5])):
        eval_set = runner.chosen_sets(config, [name])[0]
        examples = sweep.collect(config, eval_set, build_row=world.build_row, open_source=world.open_source)
        alone = sweep.decode_on_all_hosts(world, predictor, examples, setting, None)
        parts: list[bytes] = []
        with monkeypatch.context() as patch:
            patch.setattr(sweep.hosts, "count", lambda: 2)
            for host in (0, 1):
                patch.setattr(sweep.hosts, "index", lambda host=host: host)
                patch.setattr(sweep.hosts, "gather", functools.partial(send, parts))
                with pytest.raises(Sent):
                    sweep.decode_on_all_hosts(world, wide, examples, setting, None)
            patch.setattr(sweep.hosts, "gather", lambda content, parts=parts: parts)
            joined = sweep.decode_on_all_hosts(world, wide, examples, setting, None)
        np.testing.assert_allclose(joined.scores, alone.scores, rtol=1e-5)
        assert [ids.tolist() for ids in joined.ids] == [ids.tolist() for ids in alone.ids]
        assert (joined.rank_scores is None) == (alone.rank_scores is None) == (not setting.scorer)
        if setting.scorer:
            assert joined.rank_scores.tolist() == alone.rank_scores.tolist()
            assert len({tuple(ids.tolist()) for ids in alone.ids}) > 1


def test_a_finished_sweep_is_drawn(whole, world, checkpoints):
    out, rows = whole
    said = []
    assert run(world, checkpoints, out, progress=said.append, render=True) == rows
    assert not any(" points)" in line for line in said), "nothing is decoded again"
    page = (out / "sweep.html").read_text()
    assert page.count("<div class=card>") == 3 * len(SETS)
    for name in (*SETS, "first@0, beam", "second@0, drawn", "first@0, forced: generated"):
        assert name in page, name
    line = json.loads(next(out.glob("points/first@0-vqa*-beam-*.predictions.jsonl")).read_text().splitlines()[0])
    assert line["instruction"].strip() in page


@pytest.mark.full
def test_rows_of_deleted_checkpoints_stay(world, checkpoints, tmp_path):
    """A run keeps its newest checkpoints only; a sweep that watched it keeps what it found for the others."""
    folder = shutil.copytree(checkpoints[0].folder, tmp_path / "run")
    shutil.copytree(folder / "checkpoints" / "0", folder / "checkpoints" / "4")
    part = {"settings": (GREEDY,), "sets": ("vqa/scenes", "matching/scenes")}
    both = run(world, find_checkpoints([folder], all_steps=True), tmp_path / "out", **part)
    shutil.rmtree(folder / "checkpoints" / "0")
    left = find_checkpoints([folder], all_steps=True)
    assert [c.name for c in left] == ["run@4"]
    assert run(world, left, tmp_path / "out", **part) == both and {row["checkpoint"] for row in both} == {"run@0", "run@4"}
    assert {row["checkpoint"] for row in run(world, left, tmp_path / "out", settings=(SETTINGS[2],), sets=part["sets"])} == {"run@4"}
    with pytest.raises(CheckpointError, match="found no checkpoint of step 0, expected one of 4"):
        run(world, [*left, Checkpoint(folder, 0)], tmp_path / "out", **part)
