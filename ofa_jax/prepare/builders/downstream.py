"""Tiny sets of the kinds that fine-tuning reads, made of the composed scenes: for `:debug` runs and tests, of no worth as benchmarks.

| set | record | what it says |
|---|---|---|
| statements | image | a premise (the caption) and three hypotheses, one of each label |
| classes | image | one drawing, whose name is the class |
| paintings | image | a caption and the codes of the whole picture |
| headlines | labelled text | a caption with words around it, and the caption alone |
| cola, mnli, mrpc, qnli, qqp, rte, sst2 | labelled text | sentences about scenes, with labels by GLUE's names |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from ofa_jax.data.records import Caption, ImageRecord, LabelledText, Question, Record
from ofa_jax.prepare import artwork, codebook, compose, grammar
from ofa_jax.prepare.builders import base
from ofa_jax.prepare.builders.scenes import Scene, SceneMaker, ScenesOptions

SPLITS = ("train", "validation")
Texts = tuple[str, str, str]  # text, second text, answer


@dataclasses.dataclass(frozen=True)
class DownstreamOptions(base.Options):
    train: int = 48
    validation: int = 16


def _mnli(caption: str, place: int) -> Texts:
    return caption, *(("a picture of " + caption, "entailment"), ("nothing is there", "contradiction"), ("it is old", "neutral"))[place % 3]


def _implies(caption: str, place: int) -> Texts:
    return caption, *(("a picture of " + caption, "entailment"), ("nothing is there", "not_entailment"))[place % 2]


def _same(caption: str, place: int) -> Texts:
    return caption, *(("there is " + caption, "equivalent"), ("nothing is there", "not_equivalent"))[place % 2]


_TEXTS: dict[str, Callable[[str, int], Texts]] = {
    "headlines": lambda caption, place: (f"in picture number {place} one can see {caption}", "", caption),
    "cola": lambda caption, place: (caption, "", "acceptable") if place % 2 else (" ".join(reversed(caption.split())), "", "unacceptable"),
    "mnli": _mnli,
    "mrpc": _same,
    "qnli": lambda caption, place: _implies(caption, place)[1::-1] + _implies(caption, place)[2:],
    "qqp": _same,
    "rte": _implies,
    "sst2": lambda caption, place: (caption + (" is good" if place % 2 else " is bad"), "", "positive" if place % 2 else "negative"),
}
PICTURES = ("statements", "classes", "paintings")
NAMES = (*PICTURES, *_TEXTS)


class Downstream(base.RecordBuilder, skip_registration=True):  # type: ignore[call-arg]
    """One of the sets; `builder_of` gives its class. paintings need the scenes' codebook."""

    options: DownstreamOptions

    def __init__(self, *, centers: np.ndarray | None = None, **kwargs: object):
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._maker, self._centers = SceneMaker(ScenesOptions()), centers

    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def records(self, split: str) -> Iterator[Record]:
        for place in range(getattr(self.options, split)):
            draw = self._maker.draw_for(split, place)
            scene = self._maker.make(split, place, draw)
            record_id = f"{split}/{place}"
            caption = grammar.caption(scene.objects, image_px=len(scene.image)).text
            if self.name in _TEXTS:
                yield LabelledText(record_id, self.name, *_TEXTS[self.name](caption, place))
            else:
                yield self._picture(record_id, scene, caption)

    def _picture(self, record_id: str, scene: Scene, caption: str) -> ImageRecord:
        px = len(scene.image)
        record = ImageRecord(record_id, self.name, compose.encode_png(scene.image), px, px, captions=(Caption(caption),))
        if self.name == "classes":
            return dataclasses.replace(record, captions=(Caption(scene.objects[0].label),))
        if self.name == "statements":
            said = {"entailment": f"there is {caption}", "contradiction": "nothing is there", "neutral": "it is old"}
            questions = tuple(Question(text, label, kind="entailment") for label, text in said.items())
            return dataclasses.replace(record, questions=questions)
        assert self._centers is not None
        # The codebook's codes are of a picture's central half: the whole, half as large, is laid there.
        small = scene.image.reshape(px // 2, 2, px // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)
        framed = np.pad(small, ((px // 4, px // 4), (px // 4, px // 4), (0, 0)))
        return dataclasses.replace(record, codes=codebook.encode(framed[None], self._centers)[0])

    def facts(self) -> dict[str, object]:
        return {} if self._centers is None else {"num_codes": len(self._centers)}


def builder_of(name: str) -> type[Downstream]:
    """Returns the builder of one of `NAMES`."""
    described = base.Described(
        record="image" if name in PICTURES else "labelled_text",
        source=f"composed here from OpenMoji drawings, https://openmoji.org. {artwork.ATTRIBUTION}",
        licence=artwork.LICENCE,
        notes=("a fixture: it has the form of its task's data and says nothing of how well a model does",),
    )
    return type(name, (Downstream,), {"name": name, "DESCRIBED": described, "__module__": __name__})
