"""Boxes and objects: hand-computed cases and pycocotools beside ours."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ofa_jax.metrics.acc_at_iou import acc_at_iou, iou
from ofa_jax.metrics.detection_ap import COCO_THRESHOLDS, detection_ap, rank_scores
from ofa_jax.metrics.f1_50 import f1_50


def test_iou_by_hand():
    assert iou(np.array([0, 0, 2, 2]), np.array([1, 0, 3, 2])) == pytest.approx(2 / 6, abs=1e-6)
    assert iou(np.array([0, 0, 1, 1]), np.array([1, 0, 2, 1])) == 0  # touching is no overlap
    assert iou(np.array([3, 3, 1, 1]), np.array([1, 1, 3, 3])) == 0  # a box turned inside out
    assert iou(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 0])) == 0


def test_acc_at_iou_counts_what_is_no_box_as_wrong():
    found = acc_at_iou([(0, 0, 4, 4), None, (0, 0, 4, 2)], [(0, 0, 4, 4), (0, 0, 4, 4), (0, 0, 4, 4)])
    # The third overlaps by exactly half, and 1e-6 in the denominator makes it a little less: the official rule.
    assert found.scores.tolist() == [1, 0, 0]


def test_f1_by_hand():
    true = [[("cat", (0, 0, 10, 10)), ("dog", (20, 20, 30, 30))], []]
    predicted = [[("cat", (0, 0, 10, 9)), ("cat", (0, 0, 10, 10)), ("cat", (20, 20, 30, 30))], []]
    found = f1_50(predicted, true)
    assert found.value == pytest.approx(2 * 1 / (3 + 2))
    assert found.scores.tolist() == [pytest.approx(0.4), 1.0]


def _coco_ap(predictions, references, scores, thresholds=(0.5,)):
    """pycocotools' AP; None takes its own thresholds, 0.5:0.95."""
    labels = sorted({label for objects in [*predictions, *references] for label, _ in objects})

    def size(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    truth = COCO()
    annotations = [
        {"image_id": i, "category_id": labels.index(label), "bbox": size(box), "area": size(box)[2] * size(box)[3], "iscrowd": 0}
        for i, objects in enumerate(references)
        for label, box in objects
    ]
    truth.dataset = {
        "images": [{"id": i} for i in range(len(references))],
        "categories": [{"id": k, "name": label} for k, label in enumerate(labels)],
        "annotations": [{"id": k + 1, **a} for k, a in enumerate(annotations)],
    }
    found = [
        {"image_id": i, "category_id": labels.index(label), "bbox": size(box), "score": s}
        for i, (objects, its) in enumerate(zip(predictions, scores, strict=True))
        for (label, box), s in zip(objects, its, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        if thresholds is not None:
            judge.params.iouThrs = np.array(thresholds)
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, -1]  # IoUs, recalls, labels, all areas, 100 detections
    return precision[precision > -1].mean()


def _random_pictures(seed, count=25):
    draw = np.random.default_rng(seed)

    def box():
        x, y = draw.integers(0, 40, 2)
        w, h = draw.integers(4, 24, 2)
        return (float(x), float(y), float(x + w), float(y + h))

    references, predictions, scores = [], [], []
    for _ in range(count):
        true = [(f"k{draw.integers(4)}", box()) for _ in range(draw.integers(0, 5))]
        found = [(label, tuple(np.add(b, draw.integers(-3, 4, 4) * np.array([1, 1, 0, 0])))) for label, b in true if draw.random() < 0.8]
        found += [(f"k{draw.integers(5)}", box()) for _ in range(draw.integers(0, 3))]
        references.append(true)
        predictions.append([found[i] for i in draw.permutation(len(found))])
        scores.append(draw.random(len(found)).tolist())
    return predictions, references, scores


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ap_equals_pycocotools(seed):
    predictions, references, scores = _random_pictures(seed)
    assert detection_ap(predictions, references, scores).value == pytest.approx(_coco_ap(predictions, references, scores), abs=1e-9)
    ranked = [rank_scores(len(p)) for p in predictions]
    assert detection_ap(predictions, references).value == pytest.approx(_coco_ap(predictions, references, ranked), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_ap_over_thresholds_equals_pycocotools(seed):
    predictions, references, scores = _random_pictures(seed)
    found = detection_ap(predictions, references, scores, thresholds=COCO_THRESHOLDS)
    assert found.value == pytest.approx(_coco_ap(predictions, references, scores, None), abs=1e-9)
    assert found.value < detection_ap(predictions, references, scores).value
    for threshold in (0.3, 0.75):
        one = detection_ap(predictions, references, scores, thresholds=(threshold,)).value
        assert one == pytest.approx(_coco_ap(predictions, references, scores, (threshold,)), abs=1e-9)


# Two pictures whose numbers follow by hand. Overlaps of 100-pixel boxes with their truth: 1, 0.8, 0.6 (a threshold, to the last bit).
STORED_REFERENCES = [[("cat", (0, 0, 10, 10)), ("cat", (20, 0, 30, 10)), ("dog", (40, 0, 50, 10))], [("cat", (0, 0, 10, 10))]]
STORED_PREDICTIONS = [
    [("cat", (0, 0, 10, 10)), ("cat", (20, 0, 30, 8)), ("dog", (40, 0, 50, 6)), ("cat", (60, 0, 70, 10))],
    [("cat", (50, 50, 60, 60)), ("bird", (0, 0, 10, 10))],  # a miss, and a label that nothing has
]
STORED_SCORES = [[0.9, 0.7, 0.6, 0.5], [0.8, 0.95]]


@pytest.mark.parametrize(
    ("thresholds", "cat", "dog"),
    [
        # cats in order of score: hit, miss, hit, miss; of three true ones 1/3 at precision 1 (34 recalls of 101), 2/3 at 2/3 (33).
        ((0.5,), (34 + 33 * 2 / 3) / 101, 1.0),
        ((0.75,), (34 + 33 * 2 / 3) / 101, 0.0),
        ((0.9,), 34 / 101, 0.0),
        # The second cat holds at 0.5 ... 0.8, seven thresholds of ten; the dog at 0.5, 0.55, 0.6.
        (COCO_THRESHOLDS, (34 + 0.7 * 33 * 2 / 3) / 101, 0.3),
    ],
)
def test_ap_of_stored_pictures(thresholds, cat, dog):
    found = detection_ap(STORED_PREDICTIONS, STORED_REFERENCES, STORED_SCORES, thresholds=thresholds)
    assert found.value == pytest.approx((cat + dog) / 2, abs=1e-9)
    assert found.value == pytest.approx(_coco_ap(STORED_PREDICTIONS, STORED_REFERENCES, STORED_SCORES, thresholds), abs=1e-9)


def test_thresholds_that_are_none_are_refused():
    for thresholds in ((), (0.0,), (0.5, 50)):
        with pytest.raises(ValueError, match="detection_ap: found IoU thresholds"):
            detection_ap([[]], [[("cat", (0, 0, 1, 1))]], thresholds=thresholds)


def test_ap_of_a_resample_is_the_ap_of_the_repeated_pictures():
    predictions, references, scores = _random_pictures(3)
    drawn = sorted(np.random.default_rng(0).integers(25, size=25).tolist())
    found = detection_ap(predictions, references, scores).resample(np.bincount(drawn, minlength=25)[None].astype(float))[0]
    repeated = [[x[i] for i in drawn] for x in (predictions, references, scores)]
    # Copies of a picture tie in score; ours takes their hits and misses as one step of the curve, pycocotools one after another.
    assert found == pytest.approx(_coco_ap(*repeated), abs=0.02)


def test_ap_without_predictions_or_without_truth_is_zero():
    assert detection_ap([[]], [[("cat", (0, 0, 1, 1))]]).value == 0
    assert detection_ap([[("cat", (0, 0, 1, 1))]], [[]]).value == 0
