"""Scenes: small pictures composed of OpenMoji drawings, with captions, regions, questions, objects and codes that are exact.

They are synthetic compositions of real artwork and say nothing about photographs. One record carries every annotation.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ofa_jax.data.records import DetectedObject, ImageRecord, Question
from ofa_jax.prepare import artwork, codebook, compose, grammar
from ofa_jax.prepare.builders import base

SPLITS = ("train", "validation", "seen_composition", "unseen_composition", "unseen_artwork")
WORDS = tuple(kind.word for kind in artwork.KINDS)
_SIZES = {1: (28, 42), 2: (22, 33), 3: (19, 28), 4: (18, 24)}  # number of objects -> longest side in pixels of a 64 px picture


@dataclasses.dataclass(frozen=True)
class ScenesOptions(base.Options):
    """Pictures per split, the picture's side and its codes, and how objects are laid out.

    With `num_codes` 0 records have no codes: a VQGAN makes them (`launch/prepare.py codes`). Else they are of a codebook of patches.
    """

    train: int = 12_000
    validation: int = 1_000
    seen_composition: int = 700
    unseen_composition: int = 700
    unseen_artwork: int = 700
    image_px: int = 64
    code_stride: int = 4
    num_codes: int = 0
    codebook_pictures: int = 2_000
    object_counts: tuple[float, ...] = (0.22, 0.32, 0.26, 0.20)  # chance of 1, 2, 3, 4 objects
    repeat: float = 0.3  # chance that a picture of several objects shows one kind twice
    relational: float = 0.35  # chance that a region text names a second object where it can
    held_out_fraction: float = 0.1  # of (kind, kind, relation) triples that only unseen_composition shows
    max_iou: float = 0.08
    max_degrees: float = 12.0
    spread: float = 0.9


@dataclasses.dataclass(frozen=True)
class Scene:
    """One composed picture: uint8 RGB [px, px, 3] and its objects by left edge."""

    image: np.ndarray
    objects: tuple[DetectedObject, ...]


def with_ids(questions: Sequence[Question], split: str, index: int) -> tuple[Question, ...]:
    """Returns the questions of picture `index` of a split with ids that no other question of the dataset has (below a million pictures
    a split and a hundred questions a picture)."""
    first = (SPLITS.index(split) * 1_000_000 + index) * 100
    return tuple(dataclasses.replace(question, question_id=first + place) for place, question in enumerate(questions))


def is_held_out(triple: tuple[str, str, str], options: ScenesOptions) -> bool:
    """Says by a seeded hash whether a canonical triple is kept out of every split but unseen_composition."""
    digest = hashlib.sha256(f"{options.seed}/{'/'.join(triple)}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < options.held_out_fraction * 2**32


def held_out_triples(options: ScenesOptions) -> list[tuple[str, str, str]]:
    """Returns every held-out (word, word, relation) triple."""
    every = [(a, b, how) for a in WORDS for b in WORDS if a != b for how in ("left of", "above")]
    return [triple for triple in every if is_held_out(triple, options)]


class SceneMaker:
    """Draws scenes: `make(split, index)` is a pure function of the options."""

    def __init__(self, options: ScenesOptions):
        self.options = options
        self._held_out = held_out_triples(options)
        self._held_out_set = set(self._held_out)

    def draw_for(self, split: str, index: int) -> np.random.Generator:
        """Returns the generator of one picture."""
        return np.random.Generator(np.random.Philox(key=[self.options.seed, SPLITS.index(split)], counter=[0, 0, 0, index]))

    def make(self, split: str, index: int, draw: np.random.Generator | None = None) -> Scene:
        """Returns picture `index` of `split`; draws until the layout fits and its triples belong to the split."""
        options = self.options
        draw = self.draw_for(split, index) if draw is None else draw
        words, wanted = self._choose_words(split, draw)
        low, high = (side * options.image_px / 64 for side in _SIZES[len(words)])
        while True:
            patches = [
                artwork.place(
                    self._artwork(word, split, draw),
                    side_px=draw.uniform(low, high),
                    degrees=draw.uniform(-options.max_degrees, options.max_degrees),
                    brightness=draw.uniform(0.85, 1.05),
                )
                for word in words
            ]
            for _ in range(20):
                layout = compose.lay_out(patches, draw, image_px=options.image_px, max_iou=options.max_iou, spread=options.spread)
                if layout is None:
                    continue
                objects = [DetectedObject(word, box) for word, box in zip(words, layout.boxes, strict=True)]
                if self._belongs(objects, split, wanted):
                    objects.sort(key=lambda item: (item.box.x0, item.box.y0))
                    canvas = compose.background(draw, image_px=options.image_px)
                    return Scene(compose.paint(canvas, patches, layout.corners), tuple(objects))

    def _choose_words(self, split: str, draw: np.random.Generator) -> tuple[list[str], tuple[str, str, str] | None]:
        if split == "unseen_composition":
            wanted = self._held_out[draw.integers(len(self._held_out))]
            return [wanted[0], wanted[1]], wanted
        if split == "seen_composition":
            return [str(word) for word in draw.choice(WORDS, 2, replace=False)], None
        weights = self.options.object_counts
        count = 1 + int(draw.choice(len(weights), p=weights))
        words = [str(word) for word in draw.choice(WORDS, count, replace=False)]
        if count > 1 and draw.random() < self.options.repeat:
            words[1] = words[0]
        return words, None

    def _artwork(self, word: str, split: str, draw: np.random.Generator) -> np.ndarray:
        if split == "unseen_artwork":
            return artwork.held_out_drawing(word)
        drawings = artwork.KINDS[WORDS.index(word)].drawings
        return artwork.drawing(drawings[draw.integers(len(drawings))])

    def _belongs(self, objects: list[DetectedObject], split: str, wanted: tuple[str, str, str] | None) -> bool:
        px = self.options.image_px
        found = [grammar.triple(a, b, image_px=px) for i, a in enumerate(objects) for b in objects[i + 1 :]]
        if len(objects) == 2 and found[0] is None:
            return False  # the caption of two objects names their relation
        if split == "unseen_composition":
            return found[0] == wanted
        return not any(triple in self._held_out_set for triple in found if triple)


class Scenes(base.RecordBuilder):
    """Five splits of composed pictures; give it the codebook that its codes are of, where they have any."""

    name = "scenes"
    DESCRIBED = base.Described(
        record="image",
        source=f"composed here from OpenMoji drawings, https://openmoji.org. {artwork.ATTRIBUTION}",
        licence=artwork.LICENCE,
        notes=(
            "synthetic compositions of real artwork: results say nothing about photographs",
            "objects, and captions that list, are in the order of their left edges",
            "unseen_composition: two objects in a (kind, kind, relation) triple that no other split shows; seen_composition: its control, "
            "two objects in triples that training may show",
            "unseen_artwork: every object is a drawing or a rendering that no other split shows (held_out_artwork)",
            f"a question's id is ((place of its split in {', '.join(SPLITS)}) * 1,000,000 + number of the picture) * 100 + its place there",
            "codes, where num_codes is not 0: nearest of the k-means patches in codebook.npz, central half-side square, raster order",
        ),
    )
    options: ScenesOptions

    def __init__(self, *, centers: np.ndarray | None = None, codebook_digest: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self._maker = SceneMaker(self.options)
        self._centers, self._codebook_digest = centers, codebook_digest
        self._captions: dict[str, None] = {}
        self._counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self._baseline: dict[str, float] = {}
        self._train_codes: list[np.ndarray] = []
        self._validation_images: list[np.ndarray] = []

    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def records(self, split: str) -> Iterator[ImageRecord]:
        options, px = self.options, self.options.image_px
        for index in range(getattr(options, split)):
            draw = self._maker.draw_for(split, index)
            scene = self._maker.make(split, index, draw)
            caption = grammar.caption(scene.objects, image_px=px)
            codes = None if self._centers is None else codebook.encode(scene.image[None], self._centers)[0]
            # every region of unseen_composition speaks of its triple
            relational = 1.0 if split == "unseen_composition" else options.relational
            record = ImageRecord(
                f"{split}/{index}",
                self.name,
                compose.encode_png(scene.image),
                px,
                px,
                captions=(caption,),
                regions=grammar.regions(scene.objects, draw, image_px=px, relational=relational),
                questions=with_ids(grammar.questions(scene.objects, draw, image_px=px, words=WORDS), split, index),
                objects=scene.objects,
                codes=codes,
            )
            if split == "train":
                self._captions[caption.text] = None
                if codes is not None:
                    self._train_codes.append(codes)
            elif split == "validation":
                self._validation_images.append(scene.image)
            counts = {
                "captions": 1,
                "regions": len(record.regions),
                "questions": len(record.questions),
                "objects": len(record.objects),
                "codes": int(codes is not None),
            }
            self._counts[split].update(counts)
            if index % 1000 == 999:
                self.progress(f"scenes/{split}: {index + 1:,} of {getattr(options, split):,} pictures")
            yield record

    def negatives(self) -> dict[str, Any]:
        answers = grammar.answers(WORDS, max_objects=len(self.options.object_counts))
        return {"captions": list(self._captions), "objects": list(WORDS), "answers": answers}

    def facts(self) -> dict[str, Any]:
        return {
            "annotations": {split: dict(counts) for split, counts in self._counts.items()},
            "held_out_triples": [" ".join((a, how, b)) for a, b, how in held_out_triples(self.options)],
            "held_out_artwork": artwork.held_out_table(),
            **self._facts_of_codes(),
        }

    def _facts_of_codes(self) -> dict[str, Any]:
        if self._centers is None:
            return {}
        images, marginal = np.stack(self._validation_images), np.stack(self._train_codes)
        return {
            "num_codes": self.options.num_codes,
            "code_stride": self.options.code_stride,
            "codebook_sha256": self._codebook_digest,
            "code_baselines_validation": codebook.baselines(images, self._centers, marginal=marginal),
        }


def fit_codebook(options: ScenesOptions) -> np.ndarray:
    """Returns the codebook (uint8 [num_codes, stride, stride, 3]) of the first `codebook_pictures` training pictures."""
    maker = SceneMaker(options)
    images = np.stack([maker.make("train", index).image for index in range(min(options.codebook_pictures, options.train))])
    return codebook.fit(images, stride=options.code_stride, num_codes=options.num_codes, seed=options.seed)
