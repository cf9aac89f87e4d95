"""The closed grammar of the scenes: captions, region texts and questions that are true by construction.

Positions are compared by the middles of the visible boxes. Two objects stand in a relation only when one axis clearly dominates, so
that no text is a matter of taste; pairs in between get no relational text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa_jax.data.records import Box, Caption, DetectedObject, Question, Region

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNT_WORDS = ("no", "a", "two", "three", "four", "five", "six")
_DOMINATES = 1.25  # the larger axis difference over the smaller one, at least
_APART = 1 / 8  # of the picture's side, at least


def centre(box: Box) -> tuple[float, float]:
    """Returns the middle of a box in pixels."""
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def relation(a: Box, b: Box, *, image_px: int) -> str | None:
    """Returns how `a` stands to `b` ("left of", "right of", "above", "below"), or None when neither axis clearly dominates."""
    (ax, ay), (bx, by) = centre(a), centre(b)
    dx, dy = bx - ax, by - ay
    far, near = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
    if far < _APART * image_px or far < _DOMINATES * near:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def triple(a: DetectedObject, b: DetectedObject, *, image_px: int) -> tuple[str, str, str] | None:
    """Returns the canonical (word, word, "left of" or "above") of two objects, or None."""
    found = relation(a.box, b.box, image_px=image_px)
    if found is None:
        return None
    return (a.label, b.label, found) if found in ("left of", "above") else (b.label, a.label, OPPOSITE[found])


def caption(objects: Sequence[DetectedObject], *, image_px: int) -> Caption:
    """Returns the caption of objects given in reading order (by left edge).

    One object "a cat"; two kinds, one each "a cat left of a dog"; otherwise counts in reading order "two cats, a dog and a tree".
    """
    if len(objects) == 2 and objects[0].label != objects[1].label:
        found = triple(objects[0], objects[1], image_px=image_px)
        if found:
            first, second, how = found
            return Caption(f"a {first} {how} a {second}", (first, second))
    counts: dict[str, int] = {}
    for item in objects:
        counts[item.label] = counts.get(item.label, 0) + 1
    parts = [f"{COUNT_WORDS[n]} {word}" + ("s" if n > 1 else "") for word, n in counts.items()]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return Caption(text, tuple(counts))


def regions(objects: Sequence[DetectedObject], draw: np.random.Generator, *, image_px: int, relational: float) -> tuple[Region, ...]:
    """Returns region texts that name exactly one object each.

    A kind that occurs once is "the cat", or with chance `relational` "the cat left of the tree" where that holds; of two of a kind,
    "the left cat" and so on. Objects that no text of the grammar singles out get none.
    """
    words = [item.label for item in objects]
    made = []
    for item in objects:
        same = [other for other in objects if other.label == item.label and other is not item]
        if not same:
            text = f"the {item.label}"
            anchors = [
                (other, how)
                for other in objects
                if other is not item and words.count(other.label) == 1 and (how := relation(item.box, other.box, image_px=image_px))
            ]
            if anchors and draw.random() < relational:
                other, how = anchors[draw.integers(len(anchors))]
                text = f"the {item.label} {how} the {other.label}"
        elif len(same) == 1 and (how := relation(item.box, same[0].box, image_px=image_px)):
            side = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}[how]
            text = f"the {side} {item.label}"
        else:
            continue
        made.append(Region(text, item.box))
    return tuple(made)


def questions(objects: Sequence[DetectedObject], draw: np.random.Generator, *, image_px: int, words: Sequence[str]) -> tuple[Question, ...]:
    """Returns questions of every type that the picture allows, balanced so that the text alone says little.

    Presence: one present and one absent kind, so half the answers are yes. Relations: yes or no by a coin. Counts of a kind: two or more
    where there are, else 0 or 1 by a coin.
    """
    present = [item.label for item in objects]
    distinct = sorted(set(present))
    absent = [word for word in words if word not in present]
    pick = lambda items: items[draw.integers(len(items))]  # noqa: E731
    asked = [
        Question(f"is there a {pick(distinct)}?", "yes", kind="yes/no"),
        Question(f"is there a {pick(absent)}?", "no", kind="yes/no"),
        Question("how many objects are there?", str(len(objects)), kind="how many"),
    ]
    repeated = [word for word in distinct if present.count(word) > 1]
    counted = pick(repeated) if repeated else pick(absent if draw.random() < 0.5 else distinct)
    asked.append(Question(f"how many {counted}s are there?", str(present.count(counted)), kind="how many"))
    unique = [item for item in objects if present.count(item.label) == 1]
    if len(objects) == 1:
        asked.append(Question("what is in the picture?", objects[0].label, kind="what"))
    related = [(a, how, b) for a in unique for b in unique if a is not b and (how := relation(a.box, b.box, image_px=image_px))]
    if related:
        a, how, b = pick(related)
        true = draw.random() < 0.5
        asked.append(Question(f"is the {a.label} {how if true else OPPOSITE[how]} the {b.label}?", "yes" if true else "no", kind="yes/no"))
    sole = [
        (found[0], how, anchor)
        for anchor in unique
        for how in OPPOSITE
        if len(found := _all_on_side(objects, anchor, how, image_px=image_px)) == 1
    ]
    if sole:
        thing, how, anchor = pick(sole)
        asked.append(Question(f"what is {how} the {anchor.label}?", thing.label, kind="what"))
    placed = []
    for item in unique:
        x, y = centre(item.box)
        if abs(x - image_px / 2) >= image_px / 10:
            placed.append((f"is the {item.label} on the left or on the right?", "left" if x < image_px / 2 else "right", "left/right"))
        if abs(y - image_px / 2) >= image_px / 10:
            placed.append((f"is the {item.label} at the top or at the bottom?", "top" if y < image_px / 2 else "bottom", "top/bottom"))
    if placed:
        question, answer, kind = pick(placed)
        asked.append(Question(question, answer, kind=kind))
    return tuple(asked)


def _all_on_side(objects: Sequence[DetectedObject], anchor: DetectedObject, how: str, *, image_px: int) -> list[DetectedObject]:
    """Returns the objects on one side of `anchor` however slightly, when the clear relation holds for each of them; else an empty list."""
    axis = 0 if how in ("left of", "right of") else 1
    sign = -1 if how in ("left of", "above") else 1
    middle = centre(anchor.box)[axis]
    there = [item for item in objects if item is not anchor and (centre(item.box)[axis] - middle) * sign > 0]
    return there if all(relation(item.box, anchor.box, image_px=image_px) == how for item in there) else []


def answers(words: Sequence[str], *, max_objects: int) -> dict[str, list[str]]:
    """Returns the answers of every question kind, with "other" for all of them together."""
    by_kind = {
        "yes/no": ["yes", "no"],
        "how many": [str(n) for n in range(max_objects + 1)],
        "what": list(words),
        "left/right": ["left", "right"],
        "top/bottom": ["top", "bottom"],
    }
    return by_kind | {"other": [answer for kind in by_kind.values() for answer in kind]}
