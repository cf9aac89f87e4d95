"""Decoded ids -> predictions, predictions and references -> the rows of eval.json and the lines of predictions.jsonl."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ofa_jax.config.schema import VocabConfig
from ofa_jax.data.records import NO_ID, Box, ImageRecord, Question
from ofa_jax.eval.collect import PER_PICTURE, Example, Examples
from ofa_jax.eval.parse import read_box, read_objects, to_picture, until_eos
from ofa_jax.metrics.acc_at_iou import acc_at_iou
from ofa_jax.metrics.accuracy import accuracy
from ofa_jax.metrics.bleu4 import bleu4
from ofa_jax.metrics.bootstrap import interval_95
from ofa_jax.metrics.cider import cider
from ofa_jax.metrics.code_accuracy import code_accuracy
from ofa_jax.metrics.detection_ap import COCO_THRESHOLDS, detection_ap
from ofa_jax.metrics.exact_match import exact_match
from ofa_jax.metrics.f1_50 import f1_50
from ofa_jax.metrics.f1_yes import f1_yes
from ofa_jax.metrics.gigaword_words import gigaword_form
from ofa_jax.metrics.masked_token_accuracy import masked_token_accuracy
from ofa_jax.metrics.mcc import mcc
from ofa_jax.metrics.measured import Measured
from ofa_jax.metrics.meteor import meteor
from ofa_jax.metrics.rouge_l import rouge_l
from ofa_jax.metrics.summary_rouge import summary_rouge
from ofa_jax.metrics.vqa_accuracy import answer_weights, vqa_accuracy
from ofa_jax.metrics.vqa_answers import vqa_answers
from ofa_jax.vocab.layout import code_of
from ofa_jax.vocab.tokenizer import Tokenizer


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _of_answers(metric: Callable[[Sequence[str], Sequence[str]], Measured]) -> Callable[..., Measured]:
    """The metric of single answers, compared in lower case."""
    return lambda p, r, _: metric([_plain(text) for text in p], [_plain(refs[0]) for refs in r])


def _gigaword_rouge(kind: str) -> Callable[..., Measured]:
    """ROUGE as OFA scores Gigaword: predictions are put into the form that its references have."""
    return lambda p, r, _: summary_rouge([gigaword_form(text) for text in p], r, kind=kind)


# Name in `Task.metrics` or `WITH_ANSWERS` -> the number of predictions and references, both as `Outputs` holds them. A new metric is a
# row here.
METRICS: dict[str, Callable[[Sequence[Any], Sequence[Any], Sequence[Example]], Measured]] = {
    "accuracy": _of_answers(accuracy),
    "mcc": _of_answers(mcc),
    "f1_yes": _of_answers(f1_yes),
    "exact_match": lambda p, r, _: exact_match(p, r),
    "cider": lambda p, r, _: cider(p, r),
    "bleu4": lambda p, r, _: bleu4(p, r),
    "rouge_l": lambda p, r, _: rouge_l(p, r),
    "meteor": lambda p, r, _: meteor(p, r),
    "gigaword_rouge_l": _gigaword_rouge("l"),
    "gigaword_rouge_1": _gigaword_rouge("1"),
    "gigaword_rouge_2": _gigaword_rouge("2"),
    "acc_at_iou_50": lambda p, r, _: acc_at_iou(p, r, threshold=0.5),
    "vqa_answers": lambda p, _, examples: vqa_answers(p, [e.item.answers for e in examples]),
    "vqa_accuracy": lambda p, _, examples: vqa_accuracy(p, [answer_weights(e.item.answers) for e in examples]),
    "ap50": lambda p, r, _: detection_ap(p, r),
    "ap": lambda p, r, _: detection_ap(p, r, thresholds=COCO_THRESHOLDS),
    "f1_50": lambda p, r, _: f1_50(p, r),
    "code_accuracy": lambda p, r, _: code_accuracy(p, r),
    "generated_code_accuracy": lambda p, r, _: code_accuracy(p, r),
    "masked_token_accuracy": lambda p, r, examples: masked_token_accuracy(p, r, [e.scored for e in examples]),
}


# Beside those of the task where people's answers to the questions are stored: the official soft accuracy and OFA's own.
WITH_ANSWERS = ("vqa_answers", "vqa_accuracy")


def metrics_of(examples: Examples) -> tuple[str, ...]:
    """Names of the metrics of a set: those of its task, and `WITH_ANSWERS` where its questions have people's answers (`collect` sees to
    it that all have them or none)."""
    has_answers = examples.task.name in ("vqa", "answering") and any(e.item.answers for e in examples.examples)
    return examples.task.metrics + (WITH_ANSWERS if has_answers else ())


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Predictions and references of one set, one of each an example.

    Their type follows the task: str and list of str for text, Box (None where malformed) for a box, [(label, Box), ...] for objects,
    boxes in pixels of the stored picture; codes (-1 where an id is none) for codes; token ids for teacher-forced text. `malformed`
    counts unreadable parts.
    """

    predictions: list[Any]
    references: list[Any]
    malformed: list[int]


def read_outputs(examples: Examples, ids: Sequence[np.ndarray], *, vocab: VocabConfig, tokenizer: Tokenizer) -> Outputs:
    """Reads the ids that the model put out for every example (`Predictor.free` or `forced`)."""
    predictions, malformed = [], []
    for example, found in zip(examples.examples, ids, strict=True):
        prediction, bad = read_prediction(examples, example, found, vocab=vocab, tokenizer=tokenizer)
        predictions.append(prediction)
        malformed.append(bad)
    return Outputs(predictions, [reference_of(examples, e) for e in examples.examples], malformed)


def read_prediction(examples: Examples, example: Example, ids: np.ndarray, *, vocab: VocabConfig, tokenizer: Tokenizer) -> tuple[Any, int]:
    """Returns what the ids of one example say, as `Outputs` holds it, and the number of its unreadable parts."""
    output, image_px = examples.task.output, examples.block.image_px
    if output == "codes":
        codes = [code_of(int(t), vocab=vocab) for t in ids]
        return [-1 if code is None else code for code in codes], codes.count(None)
    if examples.task.scoring == "teacher_forced":
        return [int(t) for t in ids], 0
    kept = until_eos(ids)
    if output == "text":
        return tokenizer.decode(kept).strip(), 0
    size = {"image_px": image_px, "width": example.record.width, "height": example.record.height}
    if output == "box":
        box = read_box(kept, vocab=vocab)
        return (None, 1) if box is None else (to_picture(box, **size), 0)
    objects, bad = read_objects(kept, vocab=vocab, tokenizer=tokenizer)
    return [(label, to_picture(box, **size)) for label, box in objects], bad


def reference_of(examples: Examples, example: Example) -> Any:
    """What the prediction of an example is compared to, whole even where training would cut its target to the block's length."""
    task, record, item = examples.task, example.record, example.item
    if task.output == "codes":
        return [int(c) for c in record.codes]
    if task.scoring == "teacher_forced":
        return [int(t) for t in example.sequence.target_ids]
    if task.output == "box":
        return item.box
    if task.output == "objects":
        return [(found.label, found.box) for found in record.objects]
    if task.name in PER_PICTURE:
        return [caption.text for caption in record.captions]
    if task.name == "grounded_captioning":
        return [region.text for region in record.regions if region.box == item.box]
    return [example.target_text]


def score_set(
    examples: Examples,
    outputs: Outputs,
    *,
    baseline_name: str,
    baseline: Sequence[Any],
    num_samples: int,
    metrics: Sequence[str] = (),
) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """The metrics of one set, {metric: {value, baseline, baseline_name, n, interval_95}}, and the first metric's score an example.

    `metrics` defaults to `metrics_of(examples)`. Intervals are bootstrapped over records. Grounding's accuracy also has `by_num_objects`,
    {"1": {value, baseline, n}, ...}, the number of objects (regions, where no objects are known) in the picture.
    """
    everything = examples.examples
    records = [e.record.record_id for e in everything]
    results: dict[str, dict[str, Any]] = {}
    first: np.ndarray | None = None
    for name in metrics or metrics_of(examples):
        measured = METRICS[name](outputs.predictions, outputs.references, everything)
        naive = METRICS[name](list(baseline), outputs.references, everything)
        first = measured.scores if first is None else first
        results[name] = {
            "value": measured.value,
            "baseline": naive.value,
            "baseline_name": baseline_name,
            "n": measured.n,
            "interval_95": list(interval_95(measured, records=records, num_samples=num_samples)),
        }
        if examples.task.output == "box":
            results[name]["by_num_objects"] = _by_num_objects(everything, measured, naive)
        if examples.task.output in ("box", "objects"):
            results[name]["malformed"] = int(sum(bad > 0 for bad in outputs.malformed))
        if name in ("ap50", "ap"):
            results[name]["object_score"] = "1 / (1 + place in the output): a greedy decoder gives objects no confidence"
    return results, first


def _by_num_objects(examples: Sequence[Example], measured: Measured, naive: Measured) -> dict[str, dict[str, Any]]:
    sizes = np.array([len(e.record.objects) or len(e.record.regions) for e in examples])
    groups = {}
    for size in np.unique(sizes):
        mask = sizes == size
        groups[str(size)] = {
            "value": float(measured.scores[mask].mean()), "baseline": float(naive.scores[mask].mean()), "n": int(mask.sum())
        }  # fmt: skip
    return groups


def prediction_lines(examples: Examples, outputs: Outputs, scores: np.ndarray, *, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """One JSON object an example: set, record, dataset, task, instruction, prediction, reference, score, malformed; width and height
    of the stored picture, whose pixels boxes are in; question_id and people's answers where the question has them. Teacher-forced
    text shows the true text with every hidden token replaced by the model's guess."""
    lines = []
    for i, example in enumerate(examples.examples):
        prediction, reference = outputs.predictions[i], outputs.references[i]
        if examples.task.scoring == "teacher_forced" and examples.task.output == "text":
            filled = [p if hidden else r for p, r, hidden in zip(prediction, reference, example.scored, strict=True)]
            prediction, reference = tokenizer.decode(filled).strip(), [tokenizer.decode(reference).strip()]
        line = {
            "set": examples.eval_set.name,
            "record": example.record.record_id,
            "dataset": examples.eval_set.dataset,
            "task": examples.task.name,
            "instruction": tokenizer.decode(example.sequence.source_ids),
            "prediction": json_ready(prediction),
            "reference": json_ready(reference),
            "score": float(scores[i]),
        }
        if outputs.malformed[i]:
            line["malformed"] = outputs.malformed[i]
        if isinstance(example.item, Question):
            line |= {} if example.item.question_id == NO_ID else {"question_id": example.item.question_id}
            line |= {"answers": list(example.item.answers)} if example.item.answers else {}
        if isinstance(example.record, ImageRecord):
            line |= {"width": example.record.width, "height": example.record.height}
        lines.append(line)
    return lines


def json_ready(value: Any) -> Any:
    """Returns a prediction or reference as predictions.jsonl holds it: boxes as lists, objects as {"label", "box"}."""
    if isinstance(value, Box):
        return [round(float(v), 3) for v in value]
    if isinstance(value, list) and value and isinstance(value[0], tuple) and not isinstance(value[0], Box):
        return [{"label": label, "box": json_ready(box)} for label, box in value]
    return value
