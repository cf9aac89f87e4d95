"""Baselines on data small enough to see the answer."""

import numpy as np
import pytest

from ofa_jax.metrics import baselines
from ofa_jax.metrics.acc_at_iou import iou
from ofa_jax.metrics.f1_50 import f1_50


def test_majority_and_ties_do_not_depend_on_order():
    assert baselines.majority("m", ["a", "b", "b"]).predict(None) == "b"
    assert baselines.majority("m", ["b", "a"]).predict(None) == baselines.majority("m", ["a", "b"]).predict(None) == "a"
    with pytest.raises(ValueError, match="baseline m: found no training examples"):
        baselines.majority("m", [])


def test_majority_by_question_falls_back_to_the_majority():
    found = baselines.majority_by_key("q", ["is it red?", "is it red?", "is it red?", "how many?"], ["no", "no", "yes", "2"])
    assert [found.predict(k) for k in ("is it red?", "how many?", "what?")] == ["no", "2", "no"]


def test_better_is_judged_on_training_pairs():
    a, b = baselines.majority("a", ["x"]), baselines.majority("b", ["y"])
    assert baselines.better(a, b, [0, 0, 0], ["y", "y", "x"]) is b
    assert baselines.better(a, b, [0, 0], ["y", "x"]) is a


def test_constant_box_finds_the_crowded_place():
    crowd = [(10 + d, 10, 30 + d, 30) for d in range(-3, 4)]
    strays = [(200, 200, 300, 300), (100, 0, 140, 10), (0, 100, 20, 190), (300, 300, 301, 301)]
    box = baselines.constant_box(crowd + strays).predict(None)
    assert (iou(np.array(box), np.array(crowd)) >= 0.5).all()


def test_constant_objects_never_lose_to_one_box():
    draw = np.random.default_rng(0)
    pictures = []
    for _ in range(60):
        x, y = draw.integers(0, 8, 2)
        pictures.append([("cat", (x, y, x + 30, y + 30)), ("dog", (60 + x, y, 90 + x, y + 30))])
    found = baselines.constant_objects(pictures)
    objects = found.predict(None)
    assert {label for label, _ in objects} == {"cat", "dog"}
    assert f1_50([objects] * 60, pictures).value > 0.9
    assert found.name == "constant list of 2 labelled boxes"


def test_patches_and_codes_are_inverse_on_a_codebook_picture():
    draw = np.random.default_rng(0)
    centers = draw.integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)
    codes = draw.integers(0, 7, (5, 6))
    np.testing.assert_array_equal(baselines.encode_patches(baselines.decode_codes(codes, centers), centers), codes)


def encoder(centers):
    return lambda images: np.stack([baselines.encode_patches(image, centers) for image in images])


def test_nearest_visible_reads_the_rim():
    grid, side = 4, 2
    centers = np.arange(16, dtype=np.uint8)[:, None, None, None] * np.ones((1, side, side, 3), np.uint8) * 16
    codes = np.full((8, 8), 15)
    codes[1, 2:6], codes[6, 2:6], codes[2:6, 1], codes[2:6, 6] = 1, 2, 3, 4
    found = baselines.nearest_visible(baselines.decode_codes(codes, centers), encoder(centers), grid, stride=side).reshape(grid, grid)
    np.testing.assert_array_equal(found, [[1, 1, 1, 1], [3, 1, 1, 4], [3, 2, 2, 4], [2, 2, 2, 2]])
    with pytest.raises(ValueError, match="nearest visible code: picture side 8 px, expected at least 12 px"):
        baselines.nearest_visible(np.zeros((8, 8, 3), np.uint8), encoder(centers), grid, stride=side)


def test_infilled_codes_take_the_best_guess():
    constant = np.full((10, 4), 3)
    assert baselines.infilled_codes(constant, teacher_forced=True).name == "most frequent code"
    by_position = np.tile([0, 1, 0, 2], (10, 1))
    found = baselines.infilled_codes(by_position, teacher_forced=True)
    assert found.name == "most frequent code of each position"
    assert found.predict((None, None)).tolist() == [0, 1, 0, 2]
    cycle = np.array([[(start + i) % 5 for i in range(9)] for start in range(5) for _ in range(4)])
    found = baselines.infilled_codes(cycle, teacher_forced=True)
    assert found.name == "most frequent follower of the true code before"
    assert found.predict((None, cycle[7])).tolist()[1:] == cycle[7].tolist()[1:]
    assert baselines.infilled_codes(cycle, teacher_forced=False).name != found.name  # a generating model does not see true codes


def test_infilled_codes_take_the_neighbour_where_pictures_are_flat():
    centers = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8) * 30
    colours = np.array([0, 1, 2, 3, 4, 5, 6, 7] * 2)
    pictures = [baselines.decode_codes(np.full((4, 4), c), centers) for c in colours]
    codes = np.repeat(colours[:, None], 4, 1)
    found = baselines.infilled_codes(codes, pictures, codes, encoder(centers), stride=2, teacher_forced=False)
    assert found.name == "nearest visible code"
    assert found.predict((pictures[5], None)).tolist() == [5] * 4


def test_masked_tokens_choose_between_unigram_and_bigram():
    cycle = [[1, 2, 3, 4] * 5] * 10
    found = baselines.masked_tokens(cycle)
    assert found.name == "bigram"
    assert found.predict([1, 2, 3]).tolist()[1:] == [2, 3]
    draw = np.random.default_rng(0)
    noise = [draw.choice([5, *range(10, 60)], p=[0.5, *[0.01] * 50], size=30).tolist() for _ in range(20)]
    assert set(baselines.masked_tokens(noise).predict([7, 7, 7]).tolist()) == {5}
