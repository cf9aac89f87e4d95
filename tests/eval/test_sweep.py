"""Sweeps over real checkpoints of the tiny world: every point once, resumed where interrupted, computed again when something changed."""

from __future__ import annotations

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.decoding import GREEDY, DecodeSetting, SweepConfig, check_settings, parse_setting
from ofa_jax.config.errors import CheckpointError, ConfigError
from ofa_jax.eval import runner, sweep
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
    DecodeSetting("drawn", method="sample", beam=2, top_k=5, max_len=6, tasks=("captioning",)),
)
SETS = ("captioning/scenes", "matching/scenes", "grounding/scenes", "vqa/scenes", "image_infilling/scenes")


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
    return sweep.find_checkpoints([folder / "first", folder / "second"])


@pytest.fixture(scope="module")
def world(config, tokenizer, build_row, open_source):
    answers = {"count": ("1", "2", "3"), "object": ("cat", "dog", "tree")}
    return World(config, tokenizer, build_row, open_source, {"scenes": Negatives(answers=answers), "prose": Negatives()})


def run(world, checkpoints, out, *, settings=SETTINGS, sets=SETS, progress=lambda line: None):
    return sweep.run_sweep(world, SweepConfig(settings, sets=sets), checkpoints=checkpoints, out=out, progress=progress)


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
    assert "first@0" in sweep.format_rows(rows)


def test_predictions_are_typed_lines_of_every_example(whole):
    out, rows = whole
    counts = {}
    for path in out.glob("points/*.predictions.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            assert {"checkpoint", "decode", "set", "record", "instruction", "prediction", "reference", "score"} <= set(line)
            assert ("log_prob" in line) == (line["decode"] in ("answers", "prompted"))
            assert ("hypothesis_score" in line) == (line["decode"] in ("beam", "trie", "drawn"))
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
        ("a:greedy,answers=training", "decode a: answers: found 'training', expected none with method greedy"),
        ("a:beam,top_k=3", "decode a: top_k and top_p: found 3 and 0.0"),
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
        sweep.find_checkpoints([tmp_path])
    step = checkpoints[0].folder / "checkpoints" / "0"
    assert sweep.find_checkpoints([step, checkpoints[0].folder]) == checkpoints[:1]


def test_hypotheses_keep_their_order_over_hosts(world, checkpoints, config, monkeypatch):
    """Two hosts, one after the other in this process: each decodes its share, and the parts are joined in the examples' order."""
    models = sweep._Models(config)
    predictor = models.predictor(checkpoints[0])
    examples = sweep.collect(
        config, runner.chosen_sets(config, ["vqa/scenes"])[0], build_row=world.build_row, open_source=world.open_source
    )
    alone = sweep.decode_on_all_hosts(predictor, examples, SETTINGS[1], None)
    parts: list[bytes] = []
    monkeypatch.setattr(sweep.hosts, "count", lambda: 2)
    for host in (0, 1):
        monkeypatch.setattr(sweep.hosts, "index", lambda host=host: host)
        monkeypatch.setattr(sweep.hosts, "gather", lambda content: parts.append(content) or [content, content])
        sweep.decode_on_all_hosts(predictor, examples, SETTINGS[1], None)
    monkeypatch.setattr(sweep.hosts, "gather", lambda content: parts)
    joined = sweep.decode_on_all_hosts(predictor, examples, SETTINGS[1], None)
    np.testing.assert_allclose(joined.scores, alone.scores, rtol=1e-5)
    for a, b in zip(joined.ids, alone.ids, strict=True):
        assert a.tolist() == b.tolist()
