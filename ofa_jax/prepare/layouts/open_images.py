"""Open Images: boxes of 600 classes (https://storage.googleapis.com/openimages/web/download.html).

`train-annotations-bbox.csv` (or `oidv6-train-annotations-bbox.csv`) has a line for each box, in shares of the picture's sides, with the
lines of a picture together; `class-descriptions-boxable.csv` has the classes' names; pictures are `train/<ImageID>.jpg`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from collections.abc import Iterator
from typing import ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import open_file
from ofa_jax.prepare.layouts.base import Annotated, Progress
from ofa_jax.prepare.layouts.gathered import Gathered, one_file, one_of

_COLUMNS = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf")
Objects = list[tuple[str, tuple[float, ...]]]


@dataclasses.dataclass(frozen=True)
class OpenImages(Gathered):
    """The boxes of Open Images, one record a picture, named by `ImageID`, in the order of the file (the official ones are sorted).

    Boxes around more than five things of a class that touch each other (`IsGroupOf`) are left out and counted unless `groups` is set: they
    say where a crowd is, not where a thing is, and COCO's crowds are left out too. The file is read as a stream; 100 bytes a picture are
    held, by which a file is refused whose lines of a picture are not together.
    """

    split: str = "train"  # or "validation", "test"; OFA takes its objects from train alone
    groups: bool = False  # keep boxes around groups

    PAGE: ClassVar[str] = "https://storage.googleapis.com/openimages/web/download.html"

    def __post_init__(self) -> None:
        one_of(self, "split", ("train", "validation", "test"))

    def picture_key(self, record_id: str) -> str:
        """Returns Open Images' name of the picture."""
        return f"open_images/{record_id}"

    def pictures_in(self, progress: Progress) -> Iterator[Annotated]:
        """Yields every picture with its boxes as shares of its sides."""
        labels = _read_labels(one_file(self, "class-descriptions-boxable.csv", "oidv*-class-descriptions-boxable.csv"))
        path = one_file(self, f"{self.split}-annotations-bbox.csv", f"oidv*-{self.split}-annotations-bbox.csv")
        num_groups = 0
        seen: set[str] = set()
        for image, lines in itertools.groupby(_read_boxes(path), key=lambda line: line[1]):
            objects: Objects = []
            for number, _, label, box, is_group in lines:
                if image in seen:
                    raise DataError(
                        f"{path}, line {number}: field ImageID: found {image} again after other pictures, expected all lines of a picture "
                        f"together; sort the lines below the first"
                    )
                if label not in labels:
                    raise DataError(f"{path}, line {number}: field LabelName: found {label!r}, expected one of the class descriptions")
                if is_group and not self.groups:
                    num_groups += 1
                else:
                    objects.append((labels[label], box))
            seen.add(image)
            yield Annotated(image, f"{self.split}/{image}.jpg", objects=objects, relative=True)
        progress(f"{self.dataset}: {len(seen)} pictures; {num_groups} boxes left out that are groups (IsGroupOf)")


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, values) of a CSV file. Raises `DataError` when it is no text, or no CSV."""
    with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{path}, line {reader.line_num}: found what is no CSV ({error}), expected values and commas") from None
            except UnicodeDecodeError as error:  # text is decoded in blocks of lines
                raise DataError(
                    f"{path}, after line {reader.line_num}: found bytes that are no UTF-8 ({error.reason}), expected text"
                ) from None
            if row:
                yield reader.line_num, row


def _read_labels(path: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for number, row in _rows(path):
        if len(row) != 2:
            raise DataError(f"{path}, line {number}: found {len(row)} values, expected LabelName and DisplayName")
        if row[0] in labels:
            raise DataError(f"{path}, line {number}: field LabelName: found {row[0]} twice, expected every class once")
        if row[0] != "LabelName":  # version 7 has a line of titles
            labels[row[0]] = row[1]
    return labels


def _read_boxes(path: str) -> Iterator[tuple[int, str, str, tuple[float, ...], bool]]:
    """Yields (line number, picture, class, x0 y0 x1 y1, whether it is a group)."""
    rows = _rows(path)
    _, titles = next(rows, (1, []))
    for name in _COLUMNS:
        if name not in titles:
            raise DataError(
                f"{path}, line 1: field {name}: found the columns {', '.join(titles) or '(an empty file)'}, expected {name} too"
            )
    image_at, label_at, *box_at, group_at = (titles.index(name) for name in _COLUMNS)
    for number, row in rows:
        if len(row) != len(titles):
            raise DataError(f"{path}, line {number}: found {len(row)} values, expected {len(titles)}; the file may be cut off")
        try:
            box = tuple(float(row[at]) for at in box_at)
        except ValueError:
            found = ", ".join(row[at] for at in box_at)
            raise DataError(f"{path}, line {number}: fields XMin, YMin, XMax, YMax: found {found}, expected numbers") from None
        yield number, row[image_at], row[label_at], box, row[group_at] == "1"
