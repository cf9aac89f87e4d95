"""COCO: captions and objects (https://cocodataset.org/#format-data), and Karpathy's splits of the captions.

Annotations lie in `annotations/captions_train2014.json` and `annotations/instances_train2014.json`, one JSON object each with `images` and
`annotations`; pictures in `train2014/` and `val2014/`, or the same with 2017. Karpathy and Fei-Fei's `dataset_coco.json`
(https://cs.stanford.edu/people/karpathy/deepimagesent/) lists the pictures of 2014 with a split and their sentences.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption
from ofa_jax.data.storage import list_files
from ofa_jax.prepare.layouts.base import Annotated, Progress
from ofa_jax.prepare.layouts.gathered import Gathered, add_once, one_file, one_of
from ofa_jax.prepare.layouts.instances import read_instances
from ofa_jax.prepare.layouts.json_arrays import field, items
from ofa_jax.prepare.layouts.picture_names import coco_picture

_KARPATHY = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}  # split here -> splits there


@dataclasses.dataclass(frozen=True)
class Coco(Gathered):
    """COCO's captions, or its objects; one record a picture, named by its id.

    Captions carry the names of those categories that the picture has objects of and that occur in them as whole words, where
    `annotations/instances_*.json` are there. Objects that are groups (`iscrowd`) are left out and counted: their box holds many things.
    """

    what: str = "captions"  # or "objects"
    split: str = "train"  # or "val"; with Karpathy's splits "test" too, and "train" is his train and restval, as OFA trains on
    year: int = 2014  # or 2017
    karpathy: str = ""  # path of `dataset_coco.json` below the source; empty: the official split

    PAGE: ClassVar[str] = "https://cocodataset.org/#format-data"

    def __post_init__(self) -> None:
        one_of(self, "what", ("captions", "objects"))
        one_of(self, "split", _KARPATHY if self.karpathy else ("train", "val"))
        if self.karpathy and (self.what != "captions" or self.year != 2014):
            raise DataError(
                f"{self.dataset}: option karpathy: found it with {self.what} of {self.year}, expected captions of 2014, which it splits"
            )

    def picture_key(self, record_id: str) -> str:
        """Returns COCO's name of the picture."""
        return coco_picture(record_id)

    def pictures_in(self, progress: Progress) -> Iterable[Annotated]:
        """Yields every picture of the split. All captions are held: about 250 MB for the 600,000 of train2014."""
        if self.what == "objects":
            return self._objects(progress)
        return self._captions(progress)

    def _objects(self, progress: Progress) -> Iterator[Annotated]:
        path = one_file(self, f"annotations/instances_{self.split}{self.year}.json")
        found = read_instances(path)
        progress(f"{self.dataset}: {len(found.files)} pictures; {found.num_crowds} objects left out that are groups (iscrowd)")
        for picture in sorted(found.files):
            yield Annotated(str(picture), f"{self.split}{self.year}/{found.files[picture]}", objects=found.objects(picture))

    def _captions(self, progress: Progress) -> Iterator[Annotated]:
        files, texts = self._karpathy_captions() if self.karpathy else self._official_captions()
        words = self._object_words(progress)
        for picture in sorted(files):
            names = words.get(picture, ())
            captions = [Caption(text, _named_in(text, names)) for text in texts.get(picture, ())]
            yield Annotated(str(picture), files[picture], captions=captions)

    def _official_captions(self) -> tuple[dict[int, str], dict[int, list[str]]]:
        path = one_file(self, f"annotations/captions_{self.split}{self.year}.json")
        files: dict[int, str] = {}
        texts: dict[int, list[str]] = {}
        for name, raw in items(path, "images", "annotations"):
            if name == "images":
                address = f"{self.split}{self.year}/{field(raw, 'file_name', str, path=path, of=name)}"
                add_once(files, field(raw, "id", int, path=path, of=name), address, path=path, what=name)
            else:
                picture = field(raw, "image_id", int, path=path, of=name)
                texts.setdefault(picture, []).append(_one_line(field(raw, "caption", str, path=path, of=name)))
        for picture in texts:
            if picture not in files:
                raise DataError(f"{path}: annotations: field image_id: found {picture}, expected an id of images")
        return files, texts

    def _karpathy_captions(self) -> tuple[dict[int, str], dict[int, list[str]]]:
        path = one_file(self, self.karpathy)
        files: dict[int, str] = {}
        texts: dict[int, list[str]] = {}
        for name, raw in items(path, "images"):
            if field(raw, "split", str, path=path, of=name) not in _KARPATHY[self.split]:
                continue
            picture = field(raw, "cocoid", int, path=path, of=name)
            address = f"{field(raw, 'filepath', str, path=path, of=name)}/{field(raw, 'filename', str, path=path, of=name)}"
            add_once(files, picture, address, path=path, what="images (cocoid)")
            texts[picture] = [
                _one_line(field(sentence, "raw", str, path=path, of="sentences"))
                for sentence in field(raw, "sentences", list, path=path, of=name)
            ]
        return files, texts

    def _object_words(self, progress: Progress) -> dict[int, tuple[str, ...]]:
        """Returns the categories of every picture of the instances files that are there."""
        paths = list_files(self.source, f"annotations/instances_{'*' if self.karpathy else self.split}{self.year}.json")
        if not paths:
            progress(f"{self.dataset}: no annotations/instances_*{self.year}.json: captions carry no object words")
        words: dict[int, tuple[str, ...]] = {}
        for path in paths:
            found = read_instances(path)
            words.update((picture, tuple(sorted({label for label, _ in found.objects(picture)}))) for picture in found.numbers)
        return words


def _one_line(text: str) -> str:
    """A few captions begin or end with an end of line."""
    return " ".join(text.split())


def _named_in(text: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE))
