"""What a predictor without a model scores: each baseline learns from training data alone and answers for held-out examples.

Where several ways of guessing exist the better one *on the training data* is taken; the held-out references are never looked at.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence, Sized

import numpy as np

from ofa_jax.metrics.acc_at_iou import BoxLike, iou
from ofa_jax.metrics.f1_50 import f1_50
from ofa_jax.metrics.matching import LabelledBox

_SEARCH_BOXES = 2_000  # training boxes that a box search looks at, evenly spaced
_SEARCH_PICTURES = 400  # training pictures that the detection search looks at, evenly spaced


@dataclasses.dataclass(frozen=True)
class Baseline:
    """`name` says how it guesses (it stands in eval.json); `predict(x)` is its guess for one example, `x` as its maker documents."""

    name: str
    predict: Callable


def _need(name: str, values: Sized) -> None:
    if len(values) == 0:
        raise ValueError(f"baseline {name}: found no training examples, expected at least one")


def most_common(values: Sequence[Hashable]) -> Hashable:
    """The most frequent value; of equally frequent ones the smallest by `repr`, so that order does not matter."""
    return min(Counter(values).items(), key=lambda item: (-item[1], repr(item[0])))[0]


def _spaced(values: Sequence, limit: int) -> list:
    """At most `limit` of `values`, evenly spaced."""
    if len(values) <= limit:
        return list(values)
    return [values[i * len(values) // limit] for i in range(limit)]


def majority(name: str, values: Sequence[Hashable]) -> Baseline:
    """Always the most frequent training value: answer, class, caption. `predict` ignores its argument."""
    _need(name, values)
    best = most_common(values)
    return Baseline(name, lambda _: best)


def majority_by_key(name: str, keys: Sequence[Hashable], values: Sequence[Hashable]) -> Baseline:
    """The most frequent training value given a key (the exact question text, or the question's kind): `predict(key)`.

    A key that training lacks gets the most frequent value of all.
    """
    _need(name, values)
    groups: dict[Hashable, list[Hashable]] = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        groups[key].append(value)
    table = {key: most_common(group) for key, group in groups.items()}
    default = most_common(values)
    return Baseline(name, lambda key: table.get(key, default))


def better(first: Baseline, second: Baseline, inputs: Sequence, values: Sequence[Hashable]) -> Baseline:
    """The one of two baselines that is right more often on training `inputs` and `values`; the first on a tie."""
    right = [sum(b.predict(x) == v for x, v in zip(inputs, values, strict=True)) for b in (first, second)]
    return second if right[1] > right[0] else first


def best_box(boxes: Sequence[BoxLike], *, threshold: float = 0.5) -> tuple[float, float, float, float]:
    """The one box that reaches IoU >= threshold with most of `boxes`: coordinate-wise median, mean, and every box as candidates,
    then a coordinate search around the best with steps of 1/8, 1/16 and 1/32 of its sides."""
    _need("constant box", boxes)
    known = np.array([tuple(b) for b in _spaced(boxes, _SEARCH_BOXES)], np.float64)
    candidates = np.concatenate([np.median(known, 0)[None], known.mean(0)[None], np.array(_spaced(known, 500))])

    def share(found: np.ndarray) -> np.ndarray:
        return (iou(found[:, None], known[None]) >= threshold).mean(1)

    shares = share(candidates)
    box, score = candidates[int(np.argmax(shares))], shares.max()
    for step in (1 / 8, 1 / 16, 1 / 32):
        while True:
            size = np.array([box[2] - box[0], box[3] - box[1]] * 2)
            near = np.array([box + sign * step * size * np.eye(4)[i] for i in range(4) for sign in (-1, 1)])
            shares = share(near)
            if shares.max() <= score:
                break
            box, score = near[int(np.argmax(shares))], shares.max()
    x0, y0, x1, y1 = (float(v) for v in box)
    return x0, y0, x1, y1


def constant_box(boxes: Sequence[BoxLike]) -> Baseline:
    """The best single box of the training boxes, in the coordinates that they are given in. `predict` ignores its argument."""
    box = best_box(boxes)
    return Baseline("constant box", lambda _: box)


def constant_objects(pictures: Sequence[Sequence[LabelledBox]], *, max_objects: int = 8) -> Baseline:
    """The best constant list of labelled boxes for F1 at IoU 0.5: the most frequent label at its best box, then greedily the labelled
    box (five most frequent labels, best boxes of each and of its quadrants) that raises training F1 most, while one does."""
    _need("constant objects", pictures)
    by_label: dict[str, list[BoxLike]] = defaultdict(list)
    for picture in pictures:
        for label, box in picture:
            by_label[label].append(box)
    _need("constant objects", by_label)
    labels = sorted(by_label, key=lambda label: (-len(by_label[label]), label))[:5]
    candidates: list[LabelledBox] = []
    for label in labels:
        boxes = np.array([tuple(b) for b in by_label[label]], np.float64)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        side = (centres > np.median(centres, 0)).astype(int)
        groups = [boxes] + [boxes[(side == (x, y)).all(1)] for x in (0, 1) for y in (0, 1)]
        candidates += [(label, best_box(group)) for group in groups if len(group)]
    sample = _spaced(pictures, _SEARCH_PICTURES)
    chosen, score = [candidates[0]], f1_50([[candidates[0]]] * len(sample), sample).value
    while len(chosen) < max_objects:
        scored = [f1_50([[*chosen, c]] * len(sample), sample).value for c in candidates]
        if max(scored) <= score:
            break
        chosen.append(candidates[int(np.argmax(scored))])
        score = max(scored)
    return Baseline(f"constant list of {len(chosen)} labelled box{'es' if len(chosen) > 1 else ''}", lambda _: list(chosen))


def encode_patches(image: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """int64 [h/s, w/s]: the nearest center of every s x s patch of uint8 [h, w, 3], by squared distance. centers uint8 [codes, s, s, 3]."""
    side = centers.shape[1]
    h, w = image.shape[0] // side, image.shape[1] // side
    patches = image[: h * side, : w * side].reshape(h, side, w, side, 3).swapaxes(1, 2).reshape(h * w, -1).astype(np.float32)
    flat = centers.reshape(len(centers), -1).astype(np.float32)
    distance = (flat**2).sum(1) - 2 * patches @ flat.T  # |patch|^2 is the same for every center
    return distance.argmin(1).reshape(h, w)


def decode_codes(codes: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """uint8 [h*s, w*s, 3]: the centers of codes int [h, w] put side by side."""
    h, w = codes.shape
    side = centers.shape[1]
    return centers[codes].swapaxes(1, 2).reshape(h * side, w * side, 3)


def nearest_visible(image: np.ndarray, encode: Callable[[np.ndarray], np.ndarray], grid: int, *, stride: int) -> np.ndarray:
    """int64 [grid * grid]: for every code of the hidden central square the code of the visible patch straight above, below, left or
    right of the square that is nearest to it (in this order on a tie). `image` is uint8 [px, px, 3] with a visible rim of at least
    one patch; only the rim is read. `encode`: uint8 [n, h, w, 3] -> codes int [n, h / stride, w / stride]."""
    side = stride
    first = (image.shape[0] - grid * side) // 2
    if first < side:
        raise ValueError(f"nearest visible code: picture side {image.shape[0]} px, expected at least {(grid + 2) * side} px for a rim")
    last, deep = first + grid * side, first // side * side  # an encoder that looks around gets as much of the rim as there is
    up, down = encode(np.stack([image[first - deep : first, first:last], image[last : last + deep, first:last]]))
    left, right = encode(np.stack([image[first:last, first - deep : first], image[first:last, last : last + deep]]))
    rim = {"up": up[-1], "down": down[0], "left": left[:, -1], "right": right[:, 0]}
    row, column = np.mgrid[:grid, :grid]
    away = np.stack([row, grid - 1 - row, column, grid - 1 - column])
    found = np.stack([rim["up"][column], rim["down"][column], rim["left"][row], rim["right"][row]])
    return np.take_along_axis(found, away.argmin(0)[None], 0)[0].ravel()


def _followers(rows: Sequence[Sequence[int]]) -> tuple[int, dict[int, int]]:
    """The most frequent value of all rows, and of the values that follow each value; ties go to the smaller value."""
    followers: dict[int, Counter] = defaultdict(Counter)
    single: Counter = Counter()
    for row in rows:
        row = [int(v) for v in row]
        single.update(row)
        for a, b in itertools.pairwise(row):
            followers[a][b] += 1

    def first(counter: Counter) -> int:
        return min(counter.items(), key=lambda item: (-item[1], item[0]))[0]

    return first(single), {a: first(c) for a, c in followers.items()}


def _follow(single: int, best: dict[int, int], row: Sequence[int]) -> np.ndarray:
    """int64 [len(row)]: at every position the most frequent follower of the true value before it."""
    return np.array([single, *(best.get(int(before), single) for before in row[:-1])], np.int64)[: len(row)]


def infilled_codes(
    codes: np.ndarray,
    images: Sequence[np.ndarray] = (),
    image_codes: Sequence[np.ndarray] = (),
    encode: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    stride: int = 1,
    teacher_forced: bool,
) -> Baseline:
    """Image codes of a hidden central square: the best of four guesses, learned from training codes int [n, grid * grid].

    They are the most frequent code, the most frequent code of each position, `nearest_visible`, and only where the model is
    `teacher_forced` the most frequent follower of the true code before, which such a model sees as well. Counts are made on even
    examples and judged on odd ones (n >= 4), then made again on all; `nearest_visible` learns nothing and is judged on `images` with
    `image_codes`, and left out without `encode`. `predict((image, codes))` takes a held-out picture and its true codes and returns
    int64 [grid * grid].
    """
    codes = np.asarray(codes, np.int64)
    _need("infilled codes", codes)

    def fit(some: np.ndarray) -> dict[str, Callable]:
        overall = int(np.bincount(some.ravel()).argmax())
        by_position = np.array([np.bincount(column).argmax() for column in some.T])
        guesses = {
            "most frequent code": lambda x: np.full(codes.shape[1], overall),
            "most frequent code of each position": lambda x: by_position,
        }
        if teacher_forced:
            single, best = _followers(some)
            guesses["most frequent follower of the true code before"] = lambda x: _follow(single, best, x[1])
        return guesses

    learn, judge = (codes[::2], codes[1::2]) if len(codes) >= 4 else (codes, codes)
    shares = {name: np.mean([(guess((None, row)) == row).mean() for row in judge]) for name, guess in fit(learn).items()}
    guesses = fit(codes)
    if encode is not None:
        _need("nearest visible code", images)
        grid = round(np.sqrt(codes.shape[1]))
        guesses["nearest visible code"] = lambda x: nearest_visible(x[0], encode, grid, stride=stride)
        shares["nearest visible code"] = np.mean(
            [
                (guesses["nearest visible code"]((image, row)) == np.asarray(row)).mean()
                for image, row in zip(images, image_codes, strict=True)
            ]
        )
    name = max(shares, key=lambda key: shares[key])
    return Baseline(name, guesses[name])


def masked_tokens(texts: Sequence[Sequence[int]]) -> Baseline:
    """Masked-out tokens: the better of the most frequent token (unigram) and the most frequent follower of the true token before
    (bigram; teacher forcing shows that token to the model as well).

    Counts are made on nine tenths of the training texts and judged on the last tenth, then made again on all. `predict(ids)` returns
    int64 [len(ids)], a guess at every position.
    """
    texts = [t for t in texts if len(t)]
    _need("unigram or bigram", texts)
    cut = max(1, len(texts) * 9 // 10)
    learn, judge = texts[:cut], (texts[cut:] or texts)
    single, best = _followers(learn)
    unigram_right = sum(int((np.asarray(ids) == single).sum()) for ids in judge)
    bigram_right = sum(int((_follow(single, best, ids) == np.asarray(ids)).sum()) for ids in judge)
    single, best = _followers(texts)
    if bigram_right > unigram_right:
        return Baseline("bigram", lambda ids: _follow(single, best, ids))
    return Baseline("unigram", lambda ids: np.full(len(ids), single, np.int64))
