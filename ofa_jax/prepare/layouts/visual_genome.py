"""Visual Genome: region descriptions, questions and objects (https://homes.cs.washington.edu/~ranjay/visualgenome/api.html).

`image_data.json`, `region_descriptions.json`, `question_answers.json` and `objects.json` are one JSON array each, an element a picture;
pictures lie in `VG_100K/` and `VG_100K_2/`, the last two parts of their `url` in `image_data.json`.

OFA makes captions of its large regions and grounding of the small ones: a region of more than `LARGE_PX2` = 16,384 square pixels
(128 x 128) becomes a record of its own, whose picture is the region cut out and encoded again as JPEG of quality 95; the others stay
regions of the whole picture. The number is not verified: it is remembered as the paper's (arXiv 2202.03052, on its pretraining data), whose
text was not at hand; OFA's code, its notes on data sets and its authors' public answers do not have it. Another number is
`--option=large_px2=N`, the same for captions and regions.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption, Question
from ofa_jax.prepare.layouts.base import Annotated, Progress
from ofa_jax.prepare.layouts.gathered import Gathered, add_once, one_file, one_of
from ofa_jax.prepare.layouts.json_arrays import elements, field
from ofa_jax.prepare.layouts.picture_names import visual_genome_picture

LARGE_PX2 = 16_384
_FILES = {
    "captions": "region_descriptions.json",
    "regions": "region_descriptions.json",
    "questions": "question_answers.json",
    "objects": "objects.json",
}
_QUESTION_WORDS = ("what", "where", "when", "who", "why", "how", "which")


@dataclasses.dataclass(frozen=True)
class VisualGenome(Gathered):
    """One kind of Visual Genome's annotations. Records are named by the picture's id, captions "<picture id>/<region id>".

    questions: answers are lower case without the full stop at their end, as VQAv2 writes answers ("Yellow." -> "yellow"); the kind is
    "how many" or the question's first word, where it is a question word, else "other". objects: the label is the first of an
    object's names. There is one split, "train".
    """

    what: str = "captions"  # captions (of large regions cut out) | regions (small ones) | questions | objects
    large_px2: int = LARGE_PX2  # regions of a larger area, in pixels as they are annotated, are captions

    PAGE: ClassVar[str] = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html"

    def __post_init__(self) -> None:
        one_of(self, "what", _FILES)

    def split_name(self) -> str:
        """Returns "train"."""
        return "train"

    def picture_key(self, record_id: str) -> str:
        """Returns Visual Genome's name of the picture, which GQA's pictures have too."""
        return visual_genome_picture(record_id.partition("/")[0])

    def pictures_in(self, progress: Progress) -> Iterator[Annotated]:
        """Yields every picture, or large region. The annotations are held as JSON texts: half a gigabyte for the 5.4 million regions."""
        files = self._files()
        path = one_file(self, _FILES[self.what])
        read = {"questions": self._questions, "objects": self._objects}.get(self.what, self._regions)
        held: dict[int, str] = {}
        for raw in elements(path):
            # The files call the picture's id "id" or "image_id", and not the same in every version.
            picture = field(raw, "image_id" if isinstance(raw, dict) and "image_id" in raw else "id", int, path=path, of="pictures")
            if picture not in files:
                raise DataError(f"{path}: field image_id: found {picture}, expected an id of image_data.json")
            add_once(held, picture, json.dumps(read(raw, path)), path=path, what="pictures")
        without = 0
        for picture in sorted(files):
            values = json.loads(held.get(picture, "[]"))
            if self.what == "questions":
                yield Annotated(str(picture), files[picture], questions=[Question(*value) for value in values])
            elif self.what == "objects":
                yield Annotated(str(picture), files[picture], objects=values)
            elif not values:
                without += 1  # all its regions are of the other kind, which is no fault of the picture
            elif self.what == "regions":
                yield Annotated(str(picture), files[picture], regions=[(text, box) for _, text, box in values])
            else:
                for region, text, box in values:
                    yield Annotated(f"{picture}/{region}", files[picture], captions=[Caption(text)], crop=box)
        if without:
            size = "larger than" if self.what == "captions" else "of at most"
            progress(f"{self.dataset}: {without} of {len(files)} pictures have no region {size} {self.large_px2} square pixels")

    def _files(self) -> dict[int, str]:
        path = one_file(self, "image_data.json")
        files: dict[int, str] = {}
        for raw in elements(path):
            picture = field(raw, "image_id", int, path=path, of="pictures")
            address = "/".join(field(raw, "url", str, path=path, of="pictures").split("/")[-2:])
            if not address.startswith("VG_100K"):
                raise DataError(
                    f"{path}: field url: found {raw['url']!r} of picture {picture}, expected one that ends in VG_100K/<name>.jpg"
                )
            add_once(files, picture, address, path=path, what="pictures")
        return files

    def _regions(self, raw: dict[str, Any], path: str) -> list[Any]:
        found = []
        for region in field(raw, "regions", list, path=path, of="pictures"):
            x, y, width, height = _corner(region, ("x", "y", "width", "height"), path=path, of="regions")
            if (width * height > self.large_px2) == (self.what == "captions"):
                name = field(region, "region_id", int, path=path, of="regions")
                text = " ".join(field(region, "phrase", str, path=path, of="regions").split())
                found.append((name, text, (x, y, x + width, y + height)))
        return found

    def _questions(self, raw: dict[str, Any], path: str) -> list[Any]:
        found = []
        for qa in field(raw, "qas", list, path=path, of="pictures"):
            question = field(qa, "question", str, path=path, of="qas").strip()
            answer = field(qa, "answer", str, path=path, of="qas").strip().removesuffix(".").lower()
            found.append((question, answer, 1.0, _kind(question), field(qa, "qa_id", int, path=path, of="qas")))
        return found

    def _objects(self, raw: dict[str, Any], path: str) -> list[Any]:
        found = []
        for thing in field(raw, "objects", list, path=path, of="pictures"):
            x, y, width, height = _corner(thing, ("x", "y", "w", "h"), path=path, of="objects")
            names = field(thing, "names", list, path=path, of="objects")
            found.append((str(names[0]) if names else "", (x, y, x + width, y + height)))
        return found


def _corner(raw: Any, names: tuple[str, ...], *, path: str, of: str) -> list[float]:
    return [field(raw, name, float, path=path, of=of) for name in names]


def _kind(question: str) -> str:
    words = question.lower().split()
    if words[:2] == ["how", "many"]:
        return "how many"
    return words[0] if words and words[0] in _QUESTION_WORDS else "other"
