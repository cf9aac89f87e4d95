from __future__ import annotations

import cv2
import numpy as np
import pytest

from ofa_jax.data.records import Box, DetectedObject
from ofa_jax.prepare import artwork, compose, grammar
from ofa_jax.prepare.builders import scenes

OPTIONS = scenes.ScenesOptions()
MAKER = scenes.SceneMaker(OPTIONS)


def thing(word: str, x: float, y: float) -> DetectedObject:
    return DetectedObject(word, Box(x - 5, y - 5, x + 5, y + 5))


def test_words_can_be_swapped_in_any_caption() -> None:
    words = [kind.word for kind in artwork.KINDS]
    assert len(words) == len(set(words)) == 32
    assert not [word for word in words if word[0] in "aeiou" or word.endswith(("s", "x", "sh", "ch"))]
    grammar_words = "left right above below of and two three four"
    assert not [(a, b) for a in words for b in (*words, *grammar_words.split()) if a != b and a in b]


def test_every_drawing_exists_and_none_is_shown_in_training_that_is_held_out() -> None:
    shown = {drawing for kind in artwork.KINDS for drawing in kind.drawings}
    for kind in artwork.KINDS:
        for art in (*map(artwork.drawing, kind.drawings), artwork.held_out_drawing(kind.word)):
            assert art.dtype == np.float32 and art.shape[2] == 4 and min(art.shape[:2]) > 20
            assert (art[..., :3] <= art[..., 3:] + 1e-5).all()
        assert kind.held_out not in shown
    assert len(artwork.held_out_table()) == 32
    with pytest.raises(FileNotFoundError, match="no drawing FFFF"):
        artwork.drawing("FFFF")


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_scenes_are_repeatable_and_boxes_hold_what_is_visible(split: str) -> None:
    for index in range(6):
        scene, again = MAKER.make(split, index), MAKER.make(split, index)
        assert scene.objects == again.objects and (scene.image == again.image).all()
        assert scene.image.shape == (64, 64, 3) and scene.image.dtype == np.uint8
        assert [item.box.x0 for item in scene.objects] == sorted(item.box.x0 for item in scene.objects)
        for item in scene.objects:
            assert 0 <= item.box.x0 < item.box.x1 <= 64 and 0 <= item.box.y0 < item.box.y1 <= 64


def test_boxes_are_exact_for_what_is_painted() -> None:
    patches = [np.ones((10, 20, 4), np.float32), np.ones((10, 10, 4), np.float32)]
    assert compose.visible_boxes(patches, [(0, 0), (18, 5)], image_px=64) == (Box(0, 0, 20, 10), Box(18, 5, 28, 15))
    assert compose.visible_boxes(patches, [(0, 0), (19, 0)], image_px=64) == (Box(0, 0, 19, 10), Box(19, 0, 29, 10))
    assert compose.visible_boxes(patches, [(0, 0), (0, 0)], image_px=64) is None  # half of the first is hidden
    painted = compose.paint(np.zeros((64, 64, 3), np.float32), patches, [(0, 0), (18, 5)])
    rows, columns = np.nonzero(painted[..., 0])
    assert (rows.max(), columns.max()) == (14, 27)


def test_held_out_triples_are_shown_by_one_split_only() -> None:
    held_out = set(scenes.held_out_triples(OPTIONS))
    assert 0.07 < len(held_out) / (32 * 31 * 2) < 0.13
    for split in scenes.SPLITS:
        for index in range(40):
            objects = MAKER.make(split, index).objects
            pairs = [grammar.triple(a, b, image_px=64) for i, a in enumerate(objects) for b in objects[i + 1 :]]
            if split == "unseen_composition":
                assert len(objects) == 2 and pairs[0] in held_out
            else:
                assert not held_out.intersection(pair for pair in pairs if pair)


def test_captions_follow_the_grammar() -> None:
    def text(*objects: DetectedObject) -> str:
        return grammar.caption(objects, image_px=64).text

    assert text(thing("cat", 20, 20)) == "a cat"
    assert text(thing("cat", 10, 20), thing("dog", 40, 22)) == "a cat left of a dog"
    assert text(thing("cat", 20, 40), thing("dog", 22, 10)) == "a dog above a cat"
    assert text(thing("cat", 10, 20), thing("cat", 40, 22)) == "two cats"
    assert text(thing("cat", 10, 20), thing("dog", 20, 22), thing("cat", 40, 22)) == "two cats and a dog"
    four = (thing("cat", 10, 20), thing("dog", 20, 22), thing("cat", 40, 22), thing("tree", 50, 9))
    assert grammar.caption(four, image_px=64).objects == ("cat", "dog", "tree") and text(*four) == "two cats, a dog and a tree"


def test_region_texts_single_out_one_object() -> None:
    draw = np.random.default_rng(0)
    two = (thing("cat", 10, 20), thing("cat", 40, 22), thing("dog", 30, 50))
    assert [region.text for region in grammar.regions(two, draw, image_px=64, relational=0)] == ["the left cat", "the right cat", "the dog"]
    related = grammar.regions((thing("cat", 10, 20), thing("dog", 40, 22)), draw, image_px=64, relational=1)
    assert [region.text for region in related] == ["the cat left of the dog", "the dog right of the cat"]
    unclear = grammar.regions((thing("cat", 10, 20), thing("cat", 14, 22)), draw, image_px=64, relational=0)
    assert unclear == ()


def _holds(question: str, answer: str, objects: tuple[DetectedObject, ...]) -> bool:
    """Answers a question from the objects alone, in another way than the grammar does."""
    words = question.rstrip("?").split()
    labels = [item.label for item in objects]

    def middle(word: str) -> np.ndarray:
        box = next(item.box for item in objects if item.label == word)
        return np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2

    side = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
    if question.startswith("is there a"):
        return (words[3] in labels) == (answer == "yes")
    if question == "how many objects are there?":
        return answer == str(len(objects))
    if question.startswith("how many"):
        return answer == str(labels.count(words[2][:-1]))
    if question == "what is in the picture?":
        return labels == [answer]
    if question.startswith("what is"):
        axis, sign = side[words[2]]
        return (middle(answer)[axis] - middle(words[-1])[axis]) * sign > 0 if labels.count(answer) == 1 else answer in labels
    if " or " in question:
        axis, sign = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}[answer]
        return (middle(words[2])[axis] - 32) * sign > 0
    axis, sign = side[words[3]]
    return ((middle(words[2])[axis] - middle(words[-1])[axis]) * sign > 0) == (answer == "yes")


def test_answers_are_true_and_balanced() -> None:
    words = tuple(kind.word for kind in artwork.KINDS)
    known = grammar.answers(words, max_objects=4)
    there, count, related = [], [], []
    for index in range(400):
        draw = MAKER.draw_for("train", index)
        objects = MAKER.make("train", index, draw).objects
        for asked in grammar.questions(objects, draw, image_px=64, words=words):
            assert _holds(asked.question, asked.answer, objects), (asked, objects)
            assert asked.answer in known[asked.kind] and asked.answer in known["other"]
            if asked.question.startswith("is there"):
                there.append(asked.answer == "yes")
            elif asked.kind == "yes/no":
                related.append(asked.answer == "yes")
            elif asked.kind == "how many" and "objects" not in asked.question:
                count.append(asked.answer)
    assert np.mean(there) == 0.5 and 0.4 < np.mean(related) < 0.6
    assert max(np.bincount(np.array(count, int))) / len(count) < 0.5


def test_backgrounds_are_varied_and_in_range() -> None:
    draw = np.random.default_rng(0)
    made = np.stack([compose.background(draw, image_px=64) for _ in range(60)])
    assert made.dtype == np.float32 and made.min() >= 0 and made.max() <= 1
    assert made.mean(axis=(1, 2)).std(axis=0).min() > 0.1


def test_png_keeps_every_pixel() -> None:
    image = MAKER.make("train", 0).image
    decoded = cv2.imdecode(np.frombuffer(compose.encode_png(image), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert (decoded == image).all()
