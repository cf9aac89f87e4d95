"""Boxes in the manner of COCO's instances files, grouped by picture: used by every data set that took over their form.

One JSON object with the arrays `images` (id, file_name), `annotations` (id, image_id, category_id, bbox as x, y, width, height, iscrowd)
and `categories` (id, name), described at https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import dataclasses
from array import array
from typing import Any

from ofa_jax.config.errors import DataError
from ofa_jax.prepare.layouts.gathered import add_once
from ofa_jax.prepare.layouts.json_arrays import field, items

_NUMBERS = 5  # of an object: category, x0, y0, x1, y1


@dataclasses.dataclass
class Instances:
    """The content of one file. The boxes of a picture are one array of doubles, 40 bytes each: Objects365's 25 million take 1.3 GB."""

    path: str
    files: dict[int, str]  # id of a picture -> file_name
    categories: dict[int, str]
    numbers: dict[int, array]  # id of a picture -> category, x0, y0, x1, y1 of its objects, in the file's order
    num_crowds: int

    def objects(self, picture: int) -> list[tuple[str, tuple[float, ...]]]:
        """Returns (category, box) of the picture's objects."""
        values = self.numbers.get(picture, ())
        return [(self.categories[int(values[at])], tuple(values[at + 1 : at + _NUMBERS])) for at in range(0, len(values), _NUMBERS)]


def read_instances(path: str) -> Instances:
    """Reads a file in one pass, whatever the order of its arrays. Groups (`iscrowd` 1: one box around many) are left out and counted.

    Raises `DataError` when it is damaged, a field is missing, an id of a picture or category comes twice, or an annotation names a picture
    or a category that is not there.
    """
    found = Instances(path, {}, {}, {}, 0)
    of_category: dict[int, int] = {}  # category -> one of the annotations that name it, for the error
    for name, raw in items(path, "images", "annotations", "categories"):
        if name == "images":
            picture = field(raw, "id", int, path=path, of=name)
            add_once(found.files, picture, field(raw, "file_name", str, path=path, of=name), path=path, what=name)
        elif name == "categories":
            category = field(raw, "id", int, path=path, of=name)
            add_once(found.categories, category, field(raw, "name", str, path=path, of=name), path=path, what=name)
        else:
            picture = field(raw, "image_id", int, path=path, of=name)
            category = field(raw, "category_id", int, path=path, of=name)
            of_category.setdefault(category, raw.get("id", -1))
            if raw.get("iscrowd", 0):
                found.num_crowds += 1
                found.numbers.setdefault(picture, array("d"))
                continue
            found.numbers.setdefault(picture, array("d")).extend((category, *corners(raw, path=path)))
    for category, annotation in of_category.items():
        if category not in found.categories:
            raise DataError(
                f"{path}: annotations: field category_id: found {category} in annotation {annotation}, expected an id of categories"
            )
    for picture in found.numbers:
        if picture not in found.files:
            raise DataError(f"{path}: annotations: field image_id: found {picture}, expected an id of images")
    return found


def corners(raw: dict[str, Any], *, path: str) -> tuple[float, float, float, float]:
    """Returns x0 y0 x1 y1 of an annotation's `bbox`. Raises `DataError` when it is not four numbers."""
    box = field(raw, "bbox", list, path=path, of="annotations")
    if len(box) != 4 or any(type(value) not in (int, float) or abs(value) > 1e300 for value in box):
        raise DataError(f"{path}: annotations: field bbox: found {box} in annotation {raw.get('id')}, expected four numbers")
    x, y, width, height = box
    return x, y, x + width, y + height
