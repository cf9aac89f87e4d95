"""Objects365, version 2: objects of 365 categories (https://www.objects365.org/download.html).

One file in the form of COCO's instances (`zhiyuan_objv2_train.json`, 6 GB), whose pictures are named
"images/v1/patch0/objects365_v1_00000000.jpg"; unpacked they lie in `train/patch0/` and so on, or `val/patch0/`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.prepare.layouts.base import Annotated, Progress
from ofa_jax.prepare.layouts.gathered import Gathered, one_file, one_of
from ofa_jax.prepare.layouts.instances import read_instances


@dataclasses.dataclass(frozen=True)
class Objects365(Gathered):
    """The objects of Objects365, one record a picture, named by its id. Groups (`iscrowd`) are left out and counted.

    A few pictures of the file are known to be in no archive: they come as `RecordError`. Gathering needs about 2 GB for the 25 million
    boxes and 1.7 million names of pictures of the training split.
    """

    split: str = "train"  # or "val"

    PAGE: ClassVar[str] = "https://www.objects365.org/download.html"

    def __post_init__(self) -> None:
        one_of(self, "split", ("train", "val"))

    def picture_key(self, record_id: str) -> str:
        """Returns Objects365's name of the picture."""
        return f"objects365/{record_id}"

    def pictures_in(self, progress: Progress) -> Iterator[Annotated]:
        """Yields every picture of the split."""
        name = f"zhiyuan_objv2_{self.split}.json"
        path = one_file(self, name, f"annotations/{name}", f"annotation/{name}", f"{self.split}/{name}")
        found = read_instances(path)
        progress(f"{self.dataset}: {len(found.files)} pictures; {found.num_crowds} objects left out that are groups (iscrowd)")
        for picture in sorted(found.files):
            parts = found.files[picture].split("/")
            if len(parts) < 2 or not parts[-2].startswith("patch"):
                raise DataError(
                    f"{path}: images: field file_name: found {found.files[picture]!r}, expected one that ends in patch<n>/<name>.jpg"
                )
            yield Annotated(str(picture), "/".join((self.split, *parts[-2:])), objects=found.objects(picture))
