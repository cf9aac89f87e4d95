"""Pictures by class, without texts: one tar a class, as ImageNet-21K is published, or one folder a class.

Page: https://image-net.org/download-images. `n01440764.tar` holds the JPEG files of the WordNet noun 01440764; unpacked, they lie in a
folder of that name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import is_remote, list_files, open_file
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Layout, checked_record
from ofa_jax.prepare.layouts.streams import Damaged, file_error, file_inputs, record_error, relative_path, tar_members

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclasses.dataclass(frozen=True)
class ImageFolders(Layout):
    """Each tar and each folder directly in `source` is one input; the id of a record is `<class>/<file>`.

    Files that are no pictures by their ending (lists, bounding boxes) are not read; neither are tars inside a class's folder.
    """

    PAGE: ClassVar[str] = "https://image-net.org/download-images"

    split: str = "train"

    def inputs(self, gathered: Path) -> list[Input]:
        tars = list_files(self.source, "*.tar")
        folders = _folders(self.source)
        if not tars and not folders:
            raise DataError(f"{self.dataset}: found no *.tar and no folders in {self.source}, expected them as {self.PAGE} describes")
        return file_inputs(self, sorted(tars + folders), split=self.split, endings=(".tar",))

    def read(self, item: Input) -> Iterator[Found]:
        pictures = _in_tar(item.path) if item.path.endswith(".tar") else _in_folder(item.path)
        number = 0
        try:
            for name, content in pictures:
                if not name.lower().endswith(_PICTURES):
                    continue
                number += 1
                record = f"{item.name}/{name}"
                if content is None:
                    yield record_error(self, record, reason="image", field="image", found="no such file", expected=f"{item.path}/{name}")
                else:
                    yield from checked_record(self, Annotated(record, name), content)
        except Damaged as error:
            yield file_error(self, item, f"{error}, {number} whole pictures before it")
            return
        if not number:
            yield file_error(self, item, f"no file that ends in {', '.join(_PICTURES)}")


def _folders(source: str) -> list[str]:
    if not is_remote(source):
        return sorted(str(path) for path in Path(source).glob("*") if path.is_dir() and not path.name.startswith("."))
    return sorted({path.rpartition("/")[0] for path in list_files(source, "*/*")})  # object stores have no folders of their own


def _in_tar(path: str) -> Iterator[tuple[str, bytes | None]]:
    with open_file(path) as file:
        for name, content in tar_members(file):
            yield name.removeprefix("./"), content


def _in_folder(path: str) -> Iterator[tuple[str, bytes | None]]:
    for file_path in list_files(path, "**/*"):
        name = relative_path(path, file_path)
        if not name.lower().endswith(_PICTURES):
            yield name, None
            continue
        try:
            with open_file(file_path) as file:
                content = file.read()
        except FileNotFoundError:
            yield name, None  # removed since it was listed
            continue
        yield name, content
