"""RefCOCO, RefCOCO+ and RefCOCOg: regions of COCO's pictures with the expressions that refer to them (https://github.com/lichengunc/refer).

Each lies in a folder of its name: `refs(unc).p` is a pickle of Python 2, a list of references (ref_id, ann_id, image_id, split,
sentences), one file for each way to split; `instances.json` has the boxes in COCO's form. Pictures are COCO's train2014.
"""

from __future__ import annotations

import dataclasses
import pickle
import reprlib
from collections.abc import Iterator
from typing import IO, Any, ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import open_file
from ofa_jax.prepare.layouts.base import Annotated, Progress
from ofa_jax.prepare.layouts.gathered import Gathered, add_once, one_file, one_of
from ofa_jax.prepare.layouts.instances import corners
from ofa_jax.prepare.layouts.json_arrays import field, items
from ofa_jax.prepare.layouts.picture_names import coco_picture

_SPLIT_BY = {"refcoco": ("unc", "google"), "refcoco+": ("unc",), "refcocog": ("umd", "google")}  # the first is what OFA uses


@dataclasses.dataclass(frozen=True)
class RefCoco(Gathered):
    """One of the three sets, one record a picture, named by COCO's id: a region for every sentence, with the box of its reference.

    Text is the cleaned sentence (`sent`), not the raw one.
    """

    subset: str = "refcoco"  # refcoco | refcoco+ | refcocog
    split_by: str = ""  # who split it: unc | google | umd; empty: what OFA uses, unc or, for refcocog, umd
    split: str = "train"  # or val; testA, testB (unc) or test (umd)
    pictures: str = "images/mscoco/images/train2014"  # folder below the source

    PAGE: ClassVar[str] = "https://github.com/lichengunc/refer"

    def __post_init__(self) -> None:
        one_of(self, "subset", _SPLIT_BY)
        one_of(self, "split", ("train", "val", "testA", "testB", "test"))
        if self.split_by:
            one_of(self, "split_by", _SPLIT_BY[self.subset])

    def picture_key(self, record_id: str) -> str:
        """Returns COCO's name of the picture."""
        return coco_picture(record_id)

    def pictures_in(self, progress: Progress) -> Iterator[Annotated]:
        """Yields every picture of the split. Raises `DataError`, for a pickle that names a class too: nothing of it is run."""
        path = one_file(self, f"{self.subset}/refs({self.split_by or _SPLIT_BY[self.subset][0]}).p")
        instances = one_file(self, f"{self.subset}/instances.json")
        references = [raw for raw in _read_references(path) if raw["split"] == self.split]
        if not references:
            raise DataError(f"{path}: field split: found no reference of {self.split}, expected some")
        wanted = {raw["ann_id"] for raw in references}
        boxes: dict[int, tuple[int, tuple[float, ...]]] = {}
        files: dict[int, str] = {}
        for name, raw in items(instances, "images", "annotations"):
            number = field(raw, "id", int, path=instances, of=name)
            if name == "images":
                add_once(files, number, field(raw, "file_name", str, path=instances, of=name), path=instances, what=name)
            elif number in wanted:
                placed = (field(raw, "image_id", int, path=instances, of=name), corners(raw, path=instances))
                add_once(boxes, number, placed, path=instances, what=name)
        regions: dict[int, list[tuple[str, tuple[float, ...]]]] = {}
        for raw in references:
            image, box = boxes.get(raw["ann_id"], (-1, ()))
            if image != raw["image_id"] or image not in files:
                found = "no such annotation" if image == -1 else f"it in picture {image}"
                raise DataError(
                    f"{path}: reference {raw['ref_id']}: field ann_id: found {raw['ann_id']} of picture {raw['image_id']} and {found}, "
                    f"expected an annotation of the same picture, and the picture, in {instances}"
                )
            regions.setdefault(image, []).extend((_text(sentence, path), box) for sentence in raw["sentences"])
        progress(f"{self.dataset}: {len(references)} references in {len(regions)} pictures")
        for image in sorted(regions):
            yield Annotated(str(image), f"{self.pictures}/{files[image]}", regions=regions[image])


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, texts and numbers, which pickles hold without naming a class; a name would be an import, and ends the reading."""

    def __init__(self, file: IO[bytes], path: str):
        super().__init__(file, encoding="latin1")  # Python 2's texts are bytes, and these always decode
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(
            f"{self.path}: found the class {module}.{name} in the pickle, expected lists, dicts, texts and numbers; nothing of it was run"
        )


def _read_references(path: str) -> list[dict[str, Any]]:
    with open_file(path) as file:
        try:
            found = _PlainUnpickler(file, path).load()
        except DataError:
            raise
        except (
            pickle.UnpicklingError,
            EOFError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            OverflowError,
            MemoryError,
        ) as error:
            raise DataError(
                f"{path}: found what does not unpickle ({type(error).__name__}: {error}), expected a list of references"
            ) from None
    if not isinstance(found, list):
        raise DataError(f"{path}: found {reprlib.repr(found)}, expected a list of references")
    seen: dict[int, None] = {}
    for raw in found:
        for name, kind in (("ann_id", int), ("image_id", int), ("split", str), ("sentences", list)):
            field(raw, name, kind, path=path, of="references")
        add_once(seen, field(raw, "ref_id", int, path=path, of="references"), None, path=path, what="references")
    return found


def _text(sentence: Any, path: str) -> str:
    text = field(sentence, "sent", str, path=path, of="sentences")
    try:
        return text.encode("latin1").decode("utf-8")  # bytes of Python 2 were UTF-8
    except UnicodeError:  # it was a text there
        return text
