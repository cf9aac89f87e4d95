"""The evaluation from records to files, with an untrained model and with outputs whose score is known."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import EOS_ID, EvalSetConfig
from ofa_jax.eval import runner
from ofa_jax.eval.baselines import TrainingData, predict_baseline
from ofa_jax.eval.codec import load_codec
from ofa_jax.eval.collect import collect
from ofa_jax.eval.predict import Predictor
from ofa_jax.eval.scoring import prediction_lines, read_outputs, score_set
from ofa_jax.models import ofa


@pytest.fixture(scope="module")
def model(config):
    graphdef, _ = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, jax.random.key(0)))
    params = jax.jit(lambda: ofa.create(config.model, config.vocab, jax.random.key(0))[1])()
    return {"graphdef": graphdef, "params": params, "stats": ofa.init_stats(config.model)}


@pytest.fixture(scope="module")
def evaluation(config, model, tokenizer, build_row, open_source):
    return runner.evaluate(config, **model, tokenizer=tokenizer, build_row=build_row, open_source=open_source)


def _collect(config, build_row, open_source, task):
    eval_set = next(s for s in config.eval.sets if s.task == task)
    return collect(config, eval_set, build_row=build_row, open_source=open_source)


def test_every_task_is_evaluated_against_a_named_baseline(config, evaluation):
    assert list(evaluation.results) == [s.name for s in config.eval.sets]
    for metrics in evaluation.results.values():
        for result in metrics.values():
            assert {"value", "baseline", "baseline_name", "n", "interval_95"} <= set(result)
            low, high = result["interval_95"]
            assert low - 1e-9 <= result["value"] <= high + 1e-9
            assert result["baseline_name"]
    grounding = evaluation.results["grounding/scenes"]["acc_at_iou_50"]
    assert set(grounding["by_num_objects"]) == {"1", "2", "3"}
    assert sum(group["n"] for group in grounding["by_num_objects"].values()) == grounding["n"] == 13
    assert evaluation.results["captioning/scenes"]["cider"]["n"] == 7  # one a picture, though each has two captions
    assert evaluation.results["vqa/scenes"]["accuracy"]["n"] == 14
    assert evaluation.results["text_infilling/prose"]["masked_token_accuracy"]["n"] == 5


def test_files_are_typed_json(tmp_path, config, evaluation):
    runner.write_results(evaluation, tmp_path)
    assert json.loads((tmp_path / "eval.json").read_text()) == evaluation.results
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len(evaluation.predictions) == 7 + 14 + 13 + 13 + 14 + 7 + 7 + 5
    for line in lines:
        assert {"set", "record", "task", "instruction", "prediction", "reference", "score"} <= set(line)
    shown = [line for line in lines if line.get("shown")]
    assert len(shown) == 3 * len(config.eval.sets)
    for line in shown:
        assert ("picture" in line) == (line["task"] != "text_infilling")
        assert "picture" not in line or (tmp_path / "eval_pictures" / line["picture"]).exists()


def test_table_shows_margins(evaluation):
    table = runner.format_table(evaluation.results).splitlines()
    assert table[0].split()[:3] == ["set", "metric", "value"]
    assert len(table) == 2 + sum(len(metrics) for metrics in evaluation.results.values())


def test_same_examples_every_time(config, build_row, open_source):
    first, again = (_collect(config, build_row, open_source, "matching") for _ in range(2))
    assert [e.sequence for e in first.examples] == [e.sequence for e in again.examples]
    assert {e.target_text for e in first.examples} == {"yes", "no"}


def test_true_ids_score_one(config, tokenizer, build_row, open_source):
    """Every task's own target, decoded and read back, is right; a box loses at most half a bin."""
    for eval_set in config.eval.sets:
        examples = collect(config, eval_set, build_row=build_row, open_source=open_source)
        ids = [np.array([*e.sequence.target_ids, EOS_ID]) for e in examples.examples]
        if examples.task.scoring == "teacher_forced":
            ids = [row[:-1] for row in ids]
        outputs = read_outputs(examples, ids, vocab=config.vocab, tokenizer=tokenizer)
        results, scores = score_set(examples, outputs, baseline_name="itself", baseline=outputs.predictions, num_samples=20)
        assert sum(outputs.malformed) == 0
        assert "ap" not in results or 0.8 < results.pop("ap")["value"] <= 1  # half a bin costs the last thresholds, up to IoU 0.95
        for name, result in results.items():
            assert result["value"] == (pytest.approx(1.0) if name != "cider" else pytest.approx(result["baseline"])), (eval_set.name, name)
            if name != "cider":
                assert result["interval_95"] == [pytest.approx(1.0)] * 2
        assert len(prediction_lines(examples, outputs, scores, tokenizer=tokenizer)) == len(ids)


def test_batches_of_any_size_decode_alike(config, model, tokenizer, evaluation, build_row, open_source):
    """Padding, and which questions share a picture's pass through the ResNet, change nothing."""
    examples = _collect(config, build_row, open_source, "vqa")
    ids = Predictor(**model, vocab=config.vocab, batch_rows=16).free(examples)
    outputs = read_outputs(examples, ids, vocab=config.vocab, tokenizer=tokenizer)
    assert outputs.predictions == [line["prediction"] for line in evaluation.predictions if line["task"] == "vqa"]


def test_predicted_codes_are_codes(config, evaluation):
    lines = [line for line in evaluation.predictions if line["task"] == "image_infilling"]
    assert all(len(line["prediction"]) == 16 for line in lines)
    for line in lines:
        assert len(line["generated"]) == 16
        assert all(0 <= code < config.vocab.num_codes for code in line["prediction"])
        assert all(-1 <= code < config.vocab.num_codes for code in line["generated"])  # -1: BOS or UNK, which OFA's range admits
    assert "true code" not in evaluation.results["image_infilling/scenes"]["generated_code_accuracy"]["baseline_name"]


def test_baselines_learn_from_training_records(config, build_row, open_source):
    training = TrainingData(open_source, build_row)
    codec = load_codec(config.data.dir)
    names = {}
    for eval_set in config.eval.sets:
        examples = collect(config, eval_set, build_row=build_row, open_source=open_source)
        name, predictions = predict_baseline(examples, training, codec=codec)
        names[eval_set.task] = name
        assert len(predictions) == len(examples.examples)
    # The tiny world's codes are constant in a picture, so the code before is a perfect guess.
    assert names["image_infilling"] == "most frequent follower of the true code before"
    assert names["text_infilling"] == "bigram"
    assert names["grounding"] == "constant box"
    assert names["vqa"].startswith("majority answer")


def test_no_codebook_is_said(config, build_row, open_source, tmp_path):
    assert load_codec(tmp_path) is None
    examples = _collect(config, build_row, open_source, "image_infilling")
    name, _ = predict_baseline(examples, TrainingData(open_source, build_row), codec=None)
    assert name.endswith("(neither vqgan.npz nor codebook.npz, so neighbours were not tried)")


def test_mistakes_are_told_in_one_sentence(config, build_row, open_source, tmp_path):
    with pytest.raises(ConfigError, match="--sets: found 'x', expected some of captioning/scenes"):
        runner.chosen_sets(config, ["x"])
    with pytest.raises(ConfigError, match="eval.sets: found none in config tiny_world"):
        runner.chosen_sets(dataclasses.replace(config, eval=dataclasses.replace(config.eval, sets=())))
    with pytest.raises(ConfigError, match="eval.sets a: field task: found 'singing', expected one of captioning"):
        collect(config, EvalSetConfig("a", "singing", "scenes", "validation"), build_row=build_row, open_source=open_source)
    np.savez(tmp_path / "codebook.npz", centres=np.zeros(3))
    with pytest.raises(DataError, match="found arrays centres, expected centers"):
        load_codec(tmp_path)
