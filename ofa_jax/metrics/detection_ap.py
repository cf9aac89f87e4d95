"""Average precision of detected objects, averaged over labels and IoU thresholds: COCO's AP50 and AP, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.metrics.f1_50 import f1_50
from ofa_jax.metrics.matching import LabelledBox, match_objects
from ofa_jax.metrics.measured import Measured, check_same_length

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # 0.5:0.95; pycocotools spaces them like this, to the last bit
_RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's 101 recall thresholds
_EPS = float(np.spacing(1))  # COCOeval adds it to tp + fp


def rank_scores(num_objects: int) -> list[float]:
    """Scores of a greedy decoder's objects, which has none of its own: 1 / (1 + rank), so first-named objects count as surest."""
    return [1.0 / (1 + rank) for rank in range(num_objects)]


def _label_ap(counts: np.ndarray, image: np.ndarray, hits: np.ndarray, num_true: np.ndarray) -> np.ndarray:
    """AP, float64 [B], of one label: detections [n] in order of falling score (image index), whether they hit at each threshold
    [thresholds, n], true boxes an image [images]; the mean over thresholds.

    NaN where a resample holds no true box of the label.
    """
    total = counts @ num_true
    weight = counts[:, image]
    found = np.zeros(len(counts))
    for hit in hits:
        true_positive = np.cumsum(weight * hit, axis=1)
        false_positive = np.cumsum(weight * ~hit, axis=1)
        precision = true_positive / (true_positive + false_positive + _EPS)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # A recall threshold takes the precision of the first detection that reaches it: each detection counts for those it newly reaches.
        reached = np.searchsorted(_RECALLS, true_positive / np.maximum(total, 1)[:, None], side="right")
        found += (precision * np.diff(reached, axis=1, prepend=0)).sum(1) / len(_RECALLS)
    return np.where(total > 0, found / len(hits), np.nan)


def detection_ap(
    predictions: Sequence[Sequence[LabelledBox]],
    references: Sequence[Sequence[LabelledBox]],
    scores: Sequence[Sequence[float]] | None = None,
    *,
    thresholds: Sequence[float] = (0.5,),
) -> Measured:
    """AP, 101-point interpolation, mean over IoU `thresholds` and the labels that have a true box; at most the 100 best objects an
    image and label. (0.5,) gives AP50, `COCO_THRESHOLDS` the AP of COCO's tables, over boxes of all sizes and without crowds.

    `scores` defaults to `rank_scores` of every picture, which is stated wherever the number is shown: such an AP orders objects of
    all pictures by their place in the output, not by confidence. A resample takes whole pictures and averages over the labels that
    occur in it. `Measured.scores` are each picture's F1 at IoU 0.5.
    """
    check_same_length("detection_ap", predictions, references)
    if len(thresholds) == 0 or not all(0 < t <= 1 for t in thresholds):
        raise ValueError(f"detection_ap: found IoU thresholds {tuple(thresholds)}, expected at least one, all above 0 and at most 1")
    if scores is None:
        scores = [rank_scores(len(p)) for p in predictions]
    by_label: dict[str, list[tuple[float, int, np.ndarray]]] = {}
    true_counts: dict[str, np.ndarray] = {}
    for i, (predicted, true, found) in enumerate(zip(predictions, references, scores, strict=True)):
        if len(predicted) != len(found):
            raise ValueError(f"detection_ap: picture {i}: found {len(found)} scores for {len(predicted)} objects, expected equally many")
        order = np.argsort(-np.asarray(found, np.float64), kind="stable")
        kept: dict[str, int] = {}
        chosen = []
        for j in order:  # COCO's limit of 100 detections holds per picture and label
            label = predicted[j][0]
            kept[label] = kept.get(label, 0) + 1
            if kept[label] <= 100:
                chosen.append(int(j))
        objects = [predicted[j] for j in chosen]
        hits = np.array([match_objects(objects, true, threshold=t) for t in thresholds], bool)
        for k, j in enumerate(chosen):
            by_label.setdefault(predicted[j][0], []).append((float(found[j]), i, hits[:, k]))
        for label, _ in true:
            true_counts.setdefault(label, np.zeros(len(predictions)))[i] += 1

    def resample(counts: np.ndarray) -> np.ndarray:
        per_label = []
        for label in sorted(true_counts):
            rows = by_label.get(label, [])
            order = np.argsort([-s for s, _, _ in rows], kind="mergesort")
            image = np.array([rows[j][1] for j in order], np.int64)
            hits = np.array([rows[j][2] for j in order], bool).reshape(-1, len(thresholds)).T
            per_label.append(_label_ap(counts, image, hits, true_counts[label]))
        if not per_label:
            return np.zeros(len(counts))
        table = np.array(per_label)
        present = ~np.isnan(table)
        return np.where(present, table, 0.0).sum(0) / np.maximum(present.sum(0), 1)

    value = float(resample(np.ones((1, len(predictions))))[0])
    return Measured(value=value, scores=f1_50(predictions, references).scores, resample=resample)
